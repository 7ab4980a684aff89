"""From DataFrames of runs to optima, verdicts, figures and a report; only collect.py knows of run folders."""
