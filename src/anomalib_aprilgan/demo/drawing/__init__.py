# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""A generator of pictures: surfaces and objects, with and without defects."""
