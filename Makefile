build:
	.venv/bin/pip install -e . --no-build-isolation
