"Entry script of the training job; nbs/model/training_job.ipynb explains it."

import sys

from sentiment_engine.model.training_job import main

if __name__ == "__main__":
    sys.exit(main())
