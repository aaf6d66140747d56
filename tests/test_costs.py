"Every function names an instance type without a price in its error."

import pytest

from sentiment_engine.costs import always_on_month, break_even_predictions, on_demand_month, saved_share

UNPRICED = "ml.unheard.large"


@pytest.mark.parametrize(
    "price",
    [
        always_on_month,
        break_even_predictions,
        lambda kind: on_demand_month(kind, visits=50),
        lambda kind: saved_share(kind, visits=50),
    ],
    ids=["always on", "break even", "on demand", "saved"],
)
def test_a_type_without_a_price_is_named(price):
    with pytest.raises(KeyError, match=UNPRICED):
        price(UNPRICED)
