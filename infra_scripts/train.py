"Entry script of the training job; what it does is told in nbs/03d_training_job.ipynb."

import sys

from sentiment_engine.training_job import main

if __name__ == "__main__":
    sys.exit(main())
