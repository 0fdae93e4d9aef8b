# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Integration with anomalib: setup, reference images, pre- and post-processing, auxiliary data, checkpoints."""
