"""Which keys a query attends to (policies, selections) and how that is computed (kernels)."""
