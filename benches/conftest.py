"""What a run of the benches says first."""

import measure

import fastsmtp


def pytest_report_header() -> str:
    return f"fastsmtp: {fastsmtp.implementation()} codec; {measure.environment()}"


def pytest_benchmark_update_json(output_json: dict) -> None:
    """Keep names, not the messages that were measured, which are megabytes."""
    for bench in output_json["benchmarks"]:
        names = (bench["params"] or {}).items()
        bench["params"] = {name: value for name, value in names if isinstance(value, (str, int))}
