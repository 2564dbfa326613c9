# SPDX-License-Identifier: BSD-3-Clause
"""What all reports share: the colours of the house, SVG with classes, round numbers on axes."""
