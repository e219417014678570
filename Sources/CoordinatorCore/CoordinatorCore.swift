// CoordinatorCore.
