# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Comparisons of anomalib's models on its image datamodules: runs, a table of results, and a report."""
