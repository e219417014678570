// CoordinatorStore.
