"""Orchestration and tracking: the only package that knows Prefect and MLflow, and the command line."""
