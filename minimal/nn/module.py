"""What a module must remember to be rebuilt: the arguments of its constructor.

A checkpoint holds the weights and these arguments, so loading one runs no stored code:

    class Blur(nn.Module):
        def __init__(self, channels, radius=1):
            super().__init__()
            self.config = arguments(locals())        # {"channels": 3, "radius": 1}
"""


def arguments(scope):
    """The arguments of a constructor: `arguments(locals())`, on the first line after `super().__init__()`.

    Returns a dict of names and values, without `self`. Only what JSON can hold (numbers, strings, booleans, None,
    tuples and dicts of those) can be saved.
    """
    return {name: value for name, value in scope.items() if name not in ("self", "__class__")}
