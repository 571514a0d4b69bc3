"""What a run of the benches says first."""

import measure

import fastsmtp


def pytest_report_header() -> str:
    return f"fastsmtp: {fastsmtp.implementation()} codec; {measure.environment()}"
