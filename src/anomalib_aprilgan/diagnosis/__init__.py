# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Says whether an installation works: versions, devices, weights, discovery by anomalib, and a self-test."""
