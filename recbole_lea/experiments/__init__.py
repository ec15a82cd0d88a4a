"""The paper's tables and figures: plan of runs, runner, statistics, report and plots."""
