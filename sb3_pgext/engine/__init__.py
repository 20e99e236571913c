"""How a function of the policy is computed and a step is taken."""
