"""MLflow: the server or store of MLFLOW_TRACKING_URI, else a database in the folder of the dataset's results."""

import csv
import io
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from icdsel.console import note
from icdsel.trackers.base import Row, Subject, Tracked, Tracker, require_libraries

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FOLDER = "mlflow"
_URI, _EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
_ID = "icdsel.id"
_AT_ONCE = 100  # parameters of a request
_LONGEST = 500  # characters of a parameter


class Mlflow(Tracker):
    """A run of MLflow for each training and each comparison, in an experiment for each dataset."""

    name = "mlflow"
    needs_id = True
    limit: float | None = 60.0

    def require(self) -> None:
        """Checks the libraries and, where MLFLOW_TRACKING_URI is set, that what it names can be asked."""
        require_libraries(self.name, "mlflow")
        if uri := os.environ.get(_URI):
            _client(uri).search_experiments(max_results=1)
        else:
            require_libraries(self.name, "sqlalchemy", "alembic")

    def start(self, subject: Subject) -> Tracked:
        """Starts a run, or continues the one whose tag has this id."""
        uri, place = os.environ.get(_URI), None
        if not uri:
            folder = (subject.results / FOLDER).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            uri, place = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
            note(f"MLflow logs to {uri}")
        client = _client(uri)
        experiment = _experiment(client, os.environ.get(_EXPERIMENT) or f"icdsel {subject.dataset}", place)
        known = client.search_runs([experiment], f"tags.`{_ID}` = '{subject.id}'", max_results=1)
        tags = {_ID: subject.id, "icdsel.kind": subject.kind}
        run = known[0] if known else client.create_run(experiment, run_name=subject.name, tags=tags)
        client.update_run(run.info.run_id, status="RUNNING")
        _log_settings(client, run, subject)
        return _Run(client, run)


class _Run(Tracked):
    def __init__(self, client: "MlflowClient", run: "Run") -> None:
        self._client, self._run_id = client, run.info.run_id
        self._logged = {
            (name, metric.step) for name in run.data.metrics for metric in client.get_metric_history(self._run_id, name)
        }

    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        missing = [name for name in metrics if (name, number) not in self._logged]
        if missing:
            self._client.log_batch(self._run_id, [Metric(name, metrics[name], now, number) for name in missing])

    def log_recommended(self, checkpoint: str) -> None:
        self._client.set_tag(self._run_id, "recommended_checkpoint", checkpoint)

    def log_rows(self, rows: Sequence[Row]) -> None:
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        self._client.log_text(self._run_id, table.getvalue(), "comparison.csv")

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED")


def _client(uri: str) -> "MlflowClient":
    """A client; MLflow's own reports on its usage need the network, so they are off unless the user has set them."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # they log the making of a database
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def _experiment(client: "MlflowClient", name: str, place: str | None) -> str:
    """The id of the experiment of this name, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if not found:
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:  # another process may have made it in the meantime
            found = client.get_experiment_by_name(name)
            if not found:
                raise
    return str(found.experiment_id)


def _log_settings(client: "MlflowClient", run: "Run", subject: Subject) -> None:
    """Logs the settings that the run does not have; a parameter never changes."""
    from mlflow.entities import Param

    values: list[Any] = [
        Param(name, str(value)[:_LONGEST])
        for name, value in subject.flat_settings()
        if name not in run.data.params and str(value)
    ]
    for start in range(0, len(values), _AT_ONCE):
        client.log_batch(run.info.run_id, params=values[start : start + _AT_ONCE])
