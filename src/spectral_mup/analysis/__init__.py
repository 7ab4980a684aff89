"""From DataFrames of runs to optima, verdicts, figures and a report; knows no run folder and no model."""
