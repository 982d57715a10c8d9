"""The folder that `aifinops run` puts on PYTHONPATH: Python loads the `sitecustomize` in it at every start."""
