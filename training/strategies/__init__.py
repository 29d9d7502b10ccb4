"""How the gradients of several workers become one."""
