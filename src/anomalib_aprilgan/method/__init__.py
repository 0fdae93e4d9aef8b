# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The method in plain torch: one file per box of the figure of arXiv 2305.17382."""
