"""What is measured where no method is named: the defaults, and controls at equal sparsity."""

METHODS = ("obs+least_squares+owl+refit", "fine_pruning", "magnitude", "random")
