# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Weight files: reading, writing, downloading, and the weights that come with the package."""
