"""The two themes. Screens use their variables only, so that a theme of the user's own works as well."""

from textual.theme import Theme

DARK = Theme(
    name="medsft-dark",
    primary="#5fafd7",
    secondary="#8787af",
    accent="#d7af5f",
    foreground="#d0d0d0",
    background="#121212",
    surface="#1c1c1c",
    panel="#262626",
    success="#5faf5f",
    warning="#d7af5f",
    error="#ff5f5f",
    dark=True,
)
LIGHT = Theme(
    name="medsft-light",
    primary="#005f87",
    secondary="#5f5f87",
    accent="#875f00",
    foreground="#262626",
    background="#fafafa",
    surface="#eeeeee",
    panel="#e4e4e4",
    success="#005f00",
    warning="#875f00",
    error="#af0000",
    dark=False,
)
