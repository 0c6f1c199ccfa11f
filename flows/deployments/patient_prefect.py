"""`python -m flows.deployments.patient_prefect ...`: the command `prefect`; its workers outlast a server's absence."""

from flows.running.outlasting import outlast_prefect

if __name__ == "__main__":
    from prefect.cli import app

    outlast_prefect()
    app()
