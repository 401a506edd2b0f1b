"""Evaluation as values: a suite's options and systems in, results out.

from ecliptica.evaluation import run, suites, systems
"""

from ecliptica.evaluation.run import run

__all__ = ["run"]
