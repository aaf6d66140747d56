# On a fresh machine `make demo` and `make test` do everything, the installation included.
# `make help` prints the comments below: ##@ starts a group, ## describes a command, [] lists the variables it accepts.

VENV := .venv
PY := $(VENV)/bin/python
TEMPLATES := $(addprefix infra_scripts/templates/,foundation.yaml site.yaml backend.yaml monitoring.yaml deployer.yaml)

# Each variable becomes an option of a script. The scripts get the table too, so that errors name the variable.
NAMES := DATA=--data CATEGORIES=--categories ROWS=--rows MODEL=--model IDLE=--idle-minutes PORT=--site-port \
	TEACHERS=--teachers OUT=--pack SECONDS=--seconds SEED=--seed SEEDS=--seeds SIZES=--sizes ARTIFACT=--artifact \
	ENDPOINT=--endpoint STANDBY=--standby KEEP=--keep FUNCTION=--function PROFILE=--profile REGION=--region PHONE=--phone \
	QUICK=--quick ACCURACY=--accuracy OPEN=--open FOLLOW=--follow SERIES=--series YES=--yes DRY=--dry-run
RUN = MAKE_NAMES='$(NAMES)' $(PY)
option = $(patsubst $(1)=%,%,$(filter $(1)=%,$(NAMES)))
quoted = '$(subst ','\'',$(1))'
given = $(foreach name,$(1),$(if $($(name)),$(call option,$(name)) $(call quoted,$($(name)))))
switched = $(foreach name,$(1),$(if $(filter-out 0 no,$($(name))),$(call option,$(name))))
VISIT = $(call given,DATA CATEGORIES ROWS MODEL IDLE ENDPOINT STANDBY PORT)

# make refuses variables that a command does not accept, because they are probably misspelt. These are always accepted:
# make passes them on to programs, which read them from the environment.
EVERYWHERE := PYTHON CHROMIUM SHELL MAKE% PIP_% UV_% AWS_% SENTIMENT_% PYTEST_% HYPOTHESIS_% RUFF_% MYPY% XDG_% CI NO_COLOR \
	JAVA_HOME TMPDIR BROWSER %_proxy %_PROXY
TYPED := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
ifneq ($(and $(MAKECMDGOALS),$(filter-out $(EVERYWHERE),$(TYPED))),)
WRONG := $(shell awk -v goals='$(MAKECMDGOALS)' -v given='$(filter-out $(EVERYWHERE),$(TYPED))' \
	-f infra_scripts/make/help.awk Makefile)
$(if $(WRONG),$(error $(WRONG)))
endif

.DEFAULT_GOAL := help
.PHONY: help $(shell sed -n 's/^\([a-z-]*\):.*##.*/\1/p' Makefile)

help:
	@awk -f infra_scripts/make/help.awk Makefile

##@ Use it on this machine
demo: install ## run the whole engine, and serve the page [DATA=folder CATEGORIES=names ROWS=n MODEL=released IDLE=minutes ENDPOINT=lambda STANDBY=off PORT=n]
	@$(RUN) infra_scripts/demo.py $(VISIT)

status: install ## show what is running, where, and the state of the model [PROFILE=name REGION=name]
	@$(RUN) infra_scripts/status.py $(call given,PROFILE REGION)

open: install ## open the page in the browser [PROFILE=name REGION=name]
	@$(RUN) infra_scripts/status.py --open $(call given,PROFILE REGION)

logs: install ## print the logs, newest line first [FOLLOW=1 FUNCTION=name]
	@$(RUN) infra_scripts/logs.py $(call given,FUNCTION) $(call switched,FOLLOW)

smoke: install ## simulate one visit over HTTP, step by step [DATA=folder CATEGORIES=names ROWS=n MODEL=released IDLE=minutes ENDPOINT=lambda STANDBY=off PORT=n]
	@$(RUN) infra_scripts/smoke.py $(VISIT)

streamlit: install ## open the page for developers; needs a running demo, or SENTIMENT_API_URL
	@eval "$$($(PY) infra_scripts/local_cloud.py env 2>/dev/null)"; $(VENV)/bin/streamlit run website/app.py

teardown: install ## delete everything that the local deployment created [PORT=n]
	@$(RUN) infra_scripts/teardown.py $(call given,PORT)

##@ Develop
install: ## make .venv with everything in it, or repair it [PYTHON=path]
	@PYTHON="$(PYTHON)" infra_scripts/make/install.sh

lab: install ## open the notebooks in JupyterLab, with the local cloud behind them [PORT=n]
	@$(RUN) infra_scripts/lab.py $(call given,PORT)

pipeline: install ## run the notebooks as the demo does, then stop [DATA=folder CATEGORIES=names ROWS=n MODEL=released IDLE=minutes ENDPOINT=lambda STANDBY=off PORT=n]
	@$(RUN) infra_scripts/demo.py $(VISIT) --exit

book: install ## run all notebooks against a fresh local cloud and keep their outputs
	@$(PY) infra_scripts/make/book.py

docs: install ## write README.md and docs/regions.md, and build the documentation site [OPEN=1]
	@$(PY) -m benchmarks.figures
	@$(PY) infra_scripts/make/render_readme.py
	@$(PY) infra_scripts/make/render_regions.py
	@$(RUN) infra_scripts/make/build_docs.py $(call switched,OPEN)

screenshots: install ## photograph every state of the page into images/
	@infra_scripts/make/install_chromium.sh
	@$(PY) -m infra_scripts.make.screenshots

release: install ## make the released model again: half an hour on a GPU, a night on two cores [DATA=folder TEACHERS=n]
	@test -n "$(DATA)" || { echo "name the reviews: make release DATA=folder (with *.jsonl.gz of reviews)"; exit 1; }
	@$(RUN) infra_scripts/make/release_model.py $(call given,DATA TEACHERS)

artifact: install ## pack the released model as model.tar.gz for SageMaker, with the packages its container lacks [OUT=file]
	@$(PY) infra_scripts/make/release_model.py --pack $(call quoted,$(or $(OUT),model.tar.gz))

clean: ## delete generated files: the environment, the local cloud's state, runs
	@test ! -x $(PY) || $(PY) infra_scripts/local_cloud.py stop >/dev/null 2>&1 || true
	rm -rf $(VENV) .audit .moto .rehearsal .local-cloud .release .node runs _docs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .bench .container-test model.tar.gz

##@ Check
test: install ## run all checks that a change needs before it is merged
	@infra_scripts/make/install_chromium.sh
	@$(MAKE) --no-print-directory -j 2 check notebooks
	@$(VENV)/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

check: install ## lint Python, templates, JavaScript and CSS; check that generated files match their sources
	@$(PY) infra_scripts/checks/check_generated.py
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy && $(VENV)/bin/mypy -p lambdas
	@$(VENV)/bin/cfn-lint $(TEMPLATES) && echo "cfn-lint: the templates are fine"
	@$(PY) infra_scripts/checks/audit.py --offline
	@$(PY) -m infra_scripts.checks.biome

format: install ## format notebooks, scripts and JavaScript, and apply the linters' fixes
	@$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .
	@$(PY) -m infra_scripts.checks.biome --fix

notebooks: install ## run the notebooks' own tests
	@$(VENV)/bin/nbdev_test --n_workers 2 --timing

test-slow: install ## run the long versions of the tests
	@infra_scripts/make/install_chromium.sh
	@$(VENV)/bin/nbdev_test --flags slow --n_workers 1
	@$(VENV)/bin/pytest -m slow

mutants: install ## break lifecycle, API, data, model, page and publishing on purpose; tests must notice
	@$(PY) infra_scripts/checks/mutants.py

chaos: install ## kill parts of the engine at random for a minute [SECONDS=n SEED=n]
	@$(RUN) -m infra_scripts.checks.chaos $(call given,SECONDS SEED)

lighthouse: install ## print Lighthouse's four scores of the page, asleep and awake [KEEP=folder]
	@infra_scripts/make/install_chromium.sh
	@$(RUN) -m infra_scripts.checks.lighthouse $(call given,KEEP)

container-test: install ## query a model through the software of the AWS container [ARTIFACT=model.tar.gz]
	@$(RUN) infra_scripts/checks/container_test.py $(call given,ARTIFACT)

audit: install ## look for known faults in templates, files and packages; asks PyPI about the packages
	@$(PY) infra_scripts/checks/audit.py

##@ Deploy to AWS
aws-dry-run: install ## print what a deployment would create and cost; needs no account [OPTIONS="--domain …"]
	@$(PY) infra_scripts/deploy.py --target aws --dry-run $(OPTIONS)

rehearsal: install ## deploy twice to a strict local cloud as to AWS, and check the calls with a second emulator [ARGS="--quick"]
	@$(PY) infra_scripts/checks/rehearsal.py $(ARGS)

second-opinion: install ## check the calls for our templates, or a recording, with moto [RECORDING=file]
	@$(PY) infra_scripts/checks/second_opinion.py $(if $(RECORDING),$(call quoted,$(RECORDING)))

aws-acceptance: install ## test the whole engine once in an AWS account, then delete it [PROFILE=name REGION=name PHONE=+1… SERIES=1 ROWS=n IDLE=minutes DRY=1 YES=1]
	@$(RUN) infra_scripts/checks/acceptance.py $(call given,PROFILE REGION PHONE ROWS IDLE) $(call switched,SERIES DRY YES)

##@ Measure
bench-etl: install ## clean up to 3 million reviews in five ways and compare: half an hour [DATA=folder SIZES="n n"]
	@$(RUN) -m benchmarks.etl $(call given,DATA) $(if $(SIZES),--sizes $(SIZES))

bench-inference: install ## serve one model in five ways and compare: an hour [DATA=folder ARTIFACT=folder QUICK=1]
	@$(RUN) -m benchmarks.inference $(call given,DATA ARTIFACT) $(call switched,QUICK)

bench-standby: install ## run the released model in a Lambda's place, and price its memory: two minutes [DATA=folder QUICK=1]
	@$(RUN) -m benchmarks.standby $(call given,DATA) $(call switched,QUICK)

bench-crowd: install ## let 100, 500 and 2,000 visitors come at once, with and without the cache: five minutes [QUICK=1]
	@$(RUN) -m benchmarks.crowd $(call switched,QUICK)

bench-training: install ## train with our recipe and the original: half an hour [DATA=folder ACCURACY=1 QUICK=1]
	@$(RUN) -m benchmarks.training $(call given,DATA) $(call switched,QUICK ACCURACY)

bench-recipe: install ## vary one part of the recipe at a time: half an hour [DATA=folder SEEDS=n QUICK=1]
	@$(RUN) -m benchmarks.recipe $(call given,DATA SEEDS) $(call switched,QUICK)
