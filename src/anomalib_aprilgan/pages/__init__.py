# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Parts that the HTML pages of the demonstration and of comparisons share: style, templates, heatmaps."""
