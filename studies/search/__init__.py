"""The search: plan, space, queue, driver, storage, and a study as it stands."""
