"""What a newcomer hears who uses a part whose extra is not installed."""

import subprocess
import sys

import pytest

PARTS = [
    ("sqlalchemy", "from asignals.sqlalchemy import post_save", "sqlalchemy"),
    ("sqlalchemy", "from asignals.relay import SQLAlchemyOutbox", "sqlalchemy"),
    ("sqlalchemy", "from asignals.relay import Database", "sqlalchemy"),
    ("nats", "from asignals.relay import JetStream", "nats"),
    ("redis", "from asignals.relay import RedisStreams", "redis"),
    ("aio_pika", "from asignals.relay import RabbitMQ", "rabbitmq"),
    ("confluent_kafka", "from asignals.relay import Kafka", "kafka"),
    ("confluent_kafka", "from asignals.relay import engine_from_url; engine_from_url('kafka://h:9092')", "kafka"),
    ("starlette", "from asignals.inspector import Inspector", "inspector"),
    ("jinja2", "from asignals.inspector import Inspector", "inspector"),
    ("opentelemetry", "from asignals.opentelemetry import instrument", "opentelemetry"),
]


@pytest.mark.parametrize(("package", "code", "extra"), PARTS)
def test_the_error_names_the_extra(package: str, code: str, extra: str) -> None:
    """`ModuleNotFoundError` says what is missing, and the command that gets it."""
    hide = f"""
import sys
class Hidden:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""
    done = subprocess.run([sys.executable, "-c", hide + code], capture_output=True, text=True, check=False)  # noqa: S603
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: {package}")
    said, _, _ = last.partition(". Did you mean: ")  # by Python from 3.15 on, where a name like it is installed
    assert said.endswith(f" is not installed; get it with: pip install 'asignals[{extra}]'")


def test_a_mistake_of_ours_is_no_missing_extra() -> None:
    """A module of the package itself that is not there is shown as the bug that it is."""
    from asignals.overview.extras import needs

    with pytest.raises(ModuleNotFoundError, match=r"No module named 'asignals\.oven'"), needs("demo"):
        import asignals.oven  # noqa: F401  # type: ignore[import-not-found]
