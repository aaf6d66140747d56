# On a fresh machine `make demo` and `make test` do everything, the installation included.

DATA ?=
CATEGORIES ?=
ROWS ?=
IDLE ?=
VENV := .venv
PY := $(VENV)/bin/python
OPTIONS = $(if $(DATA),--data "$(DATA)") $(if $(CATEGORIES),--categories "$(CATEGORIES)") $(if $(ROWS),--rows $(ROWS)) $(if $(MODEL),--model $(MODEL)) \
	$(if $(IDLE),--idle-minutes $(IDLE))
PORTS = $(if $(PORT),--site-port "$(PORT)")
TEMPLATES := $(addprefix infra_scripts/templates/,foundation.yaml site.yaml backend.yaml monitoring.yaml deployer.yaml)

.DEFAULT_GOAL := help
.PHONY: help install demo pipeline release artifact smoke lab streamlit test test-slow mutants chaos container-test \
	bench-etl bench-inference bench-training bench-recipe check notebooks book docs screenshots lighthouse aws-dry-run \
	rehearsal second-opinion aws-acceptance audit teardown clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

install: ## make .venv with everything in it, or repair it (PYTHON=path)
	@PYTHON="$(PYTHON)" infra_scripts/make/install.sh

demo: install ## run the whole engine on this machine (DATA=folder, CATEGORIES=names, ROWS=n or MODEL=released; IDLE=minutes, PORT=n)
	@$(PY) infra_scripts/demo.py $(OPTIONS) $(PORTS)

pipeline: install ## the same without the page: run the notebooks, then stop
	@$(PY) infra_scripts/demo.py $(OPTIONS) $(PORTS) --exit

release: install ## make the released model again (half an hour on a GPU, a night on two cores; DATA=folder of real reviews, TEACHERS=n)
	@test -n "$(DATA)" || { echo "name the reviews: make release DATA=folder (with *.jsonl.gz of reviews)"; exit 1; }
	@$(PY) infra_scripts/make/release_model.py --data "$(DATA)" $(if $(TEACHERS),--teachers $(TEACHERS))

artifact: install ## pack the released model as model.tar.gz for SageMaker, with the packages its container lacks (OUT=file)
	@$(PY) infra_scripts/make/release_model.py --pack "$(or $(OUT),model.tar.gz)"

smoke: install ## play one visit over HTTP, step by step
	@$(PY) infra_scripts/smoke.py $(OPTIONS) $(PORTS)

lab: install ## open the notebooks in JupyterLab, with the local cloud behind them
	@$(PY) infra_scripts/lab.py $(PORTS)

streamlit: install ## the developer's page (a demo must be running, or set SENTIMENT_API_URL)
	@eval "$$($(PY) infra_scripts/local_cloud.py env 2>/dev/null)"; $(VENV)/bin/streamlit run website/app.py

test: install ## everything that must hold before a change is merged
	@infra_scripts/make/install_chromium.sh
	@$(MAKE) --no-print-directory check notebooks
	@$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: install ## the long versions of the tests
	@infra_scripts/make/install_chromium.sh
	@$(VENV)/bin/nbdev_test --flags slow --n_workers 1
	@$(VENV)/bin/pytest -m slow

chaos: install ## kill parts of the engine at random for a minute (SECONDS=n SEED=n)
	@$(PY) -m infra_scripts.checks.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

container-test: install ## ask a model through the software of the AWS container (ARTIFACT=model.tar.gz)
	@$(PY) infra_scripts/checks/container_test.py $(if $(ARTIFACT),--artifact "$(ARTIFACT)")

mutants: install ## break lifecycle, API, data, model, page and publishing on purpose; tests must notice
	@$(PY) infra_scripts/checks/mutants.py

bench-etl: install ## clean up to 3 million reviews in five ways and compare (half an hour; DATA=folder SIZES="n n")
	@$(PY) -m benchmarks.etl $(if $(DATA),--data "$(DATA)") $(if $(SIZES),--sizes $(SIZES))

bench-inference: install ## serve one model in five ways and compare (an hour; DATA=folder ARTIFACT=folder QUICK=1)
	@$(PY) -m benchmarks.inference $(if $(QUICK),--quick) \
		$(if $(DATA),--data "$(DATA)") $(if $(ARTIFACT),--artifact "$(ARTIFACT)")

bench-training: install ## train by our recipe and the original (half an hour; DATA=folder ACCURACY=1 QUICK=1)
	@$(PY) -m benchmarks.training $(if $(QUICK),--quick) \
		$(if $(DATA),--data "$(DATA)") $(if $(ACCURACY),--accuracy)

bench-recipe: install ## change one thing of the recipe at a time (half an hour; DATA=folder SEEDS=n QUICK=1)
	@$(PY) -m benchmarks.recipe $(if $(QUICK),--quick) $(if $(DATA),--data "$(DATA)") $(if $(SEEDS),--seeds $(SEEDS))

check: install ## lint, check types, and nothing generated may differ from its source
	@$(PY) infra_scripts/checks/check_generated.py
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy && $(VENV)/bin/mypy -p lambdas
	@$(VENV)/bin/cfn-lint $(TEMPLATES) && echo "cfn-lint: the templates are fine"
	@$(PY) infra_scripts/checks/audit.py --offline

notebooks: install ## run the notebooks' own tests
	@$(VENV)/bin/nbdev_test --n_workers 2 --timing

book: install ## run all notebooks against a fresh local cloud and keep their outputs
	@$(PY) infra_scripts/make/book.py

docs: install ## write README.md and docs/regions.md, and build the documentation site into _docs/site (OPEN=1)
	@$(PY) -m benchmarks.figures
	@$(PY) infra_scripts/make/render_readme.py
	@$(PY) infra_scripts/make/render_regions.py
	@$(PY) infra_scripts/make/build_docs.py $(if $(OPEN),--open)

screenshots: install ## photograph every state of the page into images/
	@infra_scripts/make/install_chromium.sh
	@$(PY) -m infra_scripts.make.screenshots

lighthouse: install ## print Lighthouse's four scores of the page, asleep and awake (KEEP=folder for its reports)
	@infra_scripts/make/install_chromium.sh
	@$(PY) -m infra_scripts.checks.lighthouse $(if $(KEEP),--keep "$(KEEP)")

aws-dry-run: install ## what a deployment to AWS would make and cost; needs no account (OPTIONS="--domain …")
	@$(PY) infra_scripts/deploy.py --target aws --dry-run $(OPTIONS)

rehearsal: install ## deploy to a strict local cloud as to AWS, twice, and ask a second emulator (ARGS="--quick")
	@$(PY) infra_scripts/checks/rehearsal.py $(ARGS)

aws-acceptance: install ## try the whole engine once in an AWS account, then delete it (PROFILE=name REGION=name PHONE=+1… SERIES=1 DRY=1)
	@$(PY) infra_scripts/checks/acceptance.py $(if $(PROFILE),--profile "$(PROFILE)") $(if $(REGION),--region "$(REGION)") \
		$(if $(PHONE),--phone "$(PHONE)") $(if $(SERIES),--series) $(if $(ROWS),--rows $(ROWS)) $(if $(YES),--yes) \
		$(if $(DRY),--dry-run) $(if $(IDLE),--idle-minutes $(IDLE))

second-opinion: install ## let moto judge the calls for our templates, or a recording (RECORDING=file)
	@$(PY) infra_scripts/checks/second_opinion.py $(if $(RECORDING),"$(RECORDING)")

audit: install ## look for known faults in templates, files and packages (asks PyPI about the packages)
	@$(PY) infra_scripts/checks/audit.py

teardown: install ## delete everything the local deployment made
	@$(PY) infra_scripts/teardown.py $(PORTS)

clean: ## delete what is generated here: the environment, the local cloud's state, runs
	@test ! -x $(PY) || $(PY) infra_scripts/local_cloud.py stop >/dev/null 2>&1 || true
	rm -rf $(VENV) .audit .moto .rehearsal .local-cloud .release .lighthouse runs _docs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .bench .container-test model.tar.gz
