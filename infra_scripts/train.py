"Entry script of the training job; what it does is told in nbs/model/training_job.ipynb."

import sys

from sentiment_engine.model.training_job import main

if __name__ == "__main__":
    sys.exit(main())
