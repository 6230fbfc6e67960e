/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

#include "wrapper.h"

#ifndef SPDK_RS_PATCHLEVEL
#define SPDK_RS_PATCHLEVEL 0
#endif
#define SHIM_ENABLED (SPDK_RS_PATCHLEVEL > 0)
#define SHIM_RESERVES (SHIM_ENABLED && SPDK_RS_PATCHLEVEL % 2 == 0)

int
shim_patchlevel(void)
{
	return SPDK_RS_PATCHLEVEL;
}

bool
shim_lvol_destroy_is_reserved(void)
{
	return SHIM_RESERVES;
}

static struct lvol_store_bdev *
shim_lvs_bdev(struct spdk_lvol_store *lvs)
{
	struct lvol_store_bdev *lvs_bdev;

	for (lvs_bdev = vbdev_lvol_store_first(); lvs_bdev != NULL;
	     lvs_bdev = vbdev_lvol_store_next(lvs_bdev)) {
		if (lvs_bdev->lvs == lvs) {
			break;
		}
	}

	return lvs_bdev;
}

struct spdk_lvol_store *
shim_lvs_next(struct spdk_lvol_store *prev)
{
	struct lvol_store_bdev *lvs_bdev;

	if (prev == NULL) {
		lvs_bdev = vbdev_lvol_store_first();
	} else {
		lvs_bdev = vbdev_lvol_store_next(shim_lvs_bdev(prev));
	}
	while (lvs_bdev != NULL && lvs_bdev->req != NULL) {
		lvs_bdev = vbdev_lvol_store_next(lvs_bdev);
	}

	return lvs_bdev != NULL ? lvs_bdev->lvs : NULL;
}

void
shim_lvs_info(struct spdk_lvol_store *lvs, struct shim_lvs_info *info)
{
	memset(info, 0, sizeof(*info));
	info->name = lvs->name;
	info->uuid = lvs->uuid;
	info->base_bdev = spdk_bdev_get_name(shim_lvs_bdev(lvs)->bdev);
	info->cluster_size = spdk_bs_get_cluster_size(lvs->blobstore);
	info->total_clusters = spdk_bs_total_data_cluster_count(lvs->blobstore);
	info->free_clusters = spdk_bs_free_cluster_count(lvs->blobstore);
}

#if SHIM_RESERVES
uint32_t
shim_lvs_get_used(struct spdk_lvol_store *lvs, enum shim_bs_list list, uint8_t *bits, size_t len)
{
	static const enum spdk_rs_bs_list lists[] = {
		[SHIM_BS_USED_PAGES] = SPDK_RS_BS_USED_PAGES,
		[SHIM_BS_USED_CLUSTERS] = SPDK_RS_BS_USED_CLUSTERS,
		[SHIM_BS_USED_BLOBS] = SPDK_RS_BS_USED_BLOBS,
	};

	return spdk_rs_bs_get_used(lvs->blobstore, lists[list], bits, len);
}

bool
shim_lvs_is_busy(struct spdk_lvol_store *lvs)
{
	struct spdk_lvol *lvol;
	uint64_t open = 0;

	TAILQ_FOREACH(lvol, &lvs->lvols, link) {
		if (lvol->action_in_progress) {
			return true;
		}
		/* However often an lvol is open, its blob is once. */
		open += lvol->ref_count > 0;
	}

	return !TAILQ_EMPTY(&lvs->pending_lvols) || spdk_rs_bs_is_held(lvs->blobstore, open);
}
#else
uint32_t
shim_lvs_get_used(struct spdk_lvol_store *lvs, enum shim_bs_list list, uint8_t *bits, size_t len)
{
	return 0;
}

bool
shim_lvs_is_busy(struct spdk_lvol_store *lvs)
{
	return false;
}
#endif

struct spdk_lvol *
shim_lvol_next(struct spdk_lvol_store *lvs, struct spdk_lvol *prev)
{
	return prev == NULL ? TAILQ_FIRST(&lvs->lvols) : TAILQ_NEXT(prev, link);
}

#if SHIM_RESERVES
struct spdk_lvol *
shim_lvol_by_name(struct spdk_lvol_store *lvs, const char *name)
{
	return spdk_rs_lvol_by_name(lvs, name);
}

struct spdk_lvol *
shim_lvol_by_uuid(struct spdk_lvol_store *lvs, const struct spdk_uuid *uuid)
{
	return spdk_rs_lvol_by_uuid(lvs, uuid);
}

static struct spdk_lvol *
shim_lvol_by_blob(struct spdk_lvol_store *lvs, spdk_blob_id id)
{
	return spdk_rs_lvol_by_blob(lvs, id);
}
#else
struct spdk_lvol *
shim_lvol_by_name(struct spdk_lvol_store *lvs, const char *name)
{
	struct spdk_lvol *lvol;

	TAILQ_FOREACH(lvol, &lvs->lvols, link) {
		if (strcmp(lvol->name, name) == 0) {
			break;
		}
	}

	return lvol;
}

struct spdk_lvol *
shim_lvol_by_uuid(struct spdk_lvol_store *lvs, const struct spdk_uuid *uuid)
{
	struct spdk_lvol *lvol;

	TAILQ_FOREACH(lvol, &lvs->lvols, link) {
		if (spdk_uuid_compare(&lvol->uuid, uuid) == 0) {
			break;
		}
	}

	return lvol;
}

static struct spdk_lvol *
shim_lvol_by_blob(struct spdk_lvol_store *lvs, spdk_blob_id id)
{
	struct spdk_lvol *lvol;

	TAILQ_FOREACH(lvol, &lvs->lvols, link) {
		if (lvol->blob_id == id) {
			break;
		}
	}

	return lvol;
}
#endif

static const char *
shim_lvol_name(struct spdk_lvol_store *lvs, spdk_blob_id id)
{
	struct spdk_lvol *lvol = NULL;

	if (id != SPDK_BLOBID_INVALID) {
		lvol = shim_lvol_by_blob(lvs, id);
	}

	return lvol != NULL ? lvol->name : NULL;
}

void
shim_lvol_info(struct spdk_lvol *lvol, struct shim_lvol_info *info)
{
	struct spdk_blob_store *bs = lvol->lvol_store->blobstore;

	memset(info, 0, sizeof(*info));
	info->name = lvol->name;
	info->uuid = lvol->uuid;
	info->parent = shim_lvol_name(lvol->lvol_store, spdk_blob_get_parent_snapshot(bs, lvol->blob_id));
	if (lvol->bdev != NULL) {
		info->bdev = spdk_bdev_get_name(lvol->bdev);
	}
	/* A blob that is not open can not be asked, and where it is not, there is no bdev either. */
	if (lvol->bdev != NULL && lvol->blob != NULL) {
		info->size = spdk_blob_get_num_clusters(lvol->blob) * spdk_bs_get_cluster_size(bs);
		info->thin = spdk_blob_is_thin_provisioned(lvol->blob);
		info->snapshot = spdk_blob_is_snapshot(lvol->blob);
		info->clone = spdk_blob_is_clone(lvol->blob);
		info->read_only = spdk_blob_is_read_only(lvol->blob);
	}
}

size_t
shim_lvol_clones(struct spdk_lvol *lvol, const char **names, size_t max)
{
	struct spdk_blob_store *bs = lvol->lvol_store->blobstore;
	spdk_blob_id *ids;
	size_t count = 0, i;

	spdk_blob_get_clones(bs, lvol->blob_id, NULL, &count);
	if (count == 0 || max < count) {
		return count;
	}
	ids = calloc(count, sizeof(*ids));
	if (ids == NULL || spdk_blob_get_clones(bs, lvol->blob_id, ids, &count) != 0) {
		free(ids);
		return 0;
	}
	for (i = 0; i < count; i++) {
		names[i] = shim_lvol_name(lvol->lvol_store, ids[i]);
	}
	free(ids);

	return count;
}

struct spdk_blob *
shim_lvol_blob(struct spdk_lvol *lvol)
{
	return lvol->bdev != NULL ? lvol->blob : NULL;
}

uint64_t
shim_lvol_blob_id(struct spdk_lvol *lvol)
{
	return lvol->blob_id;
}

struct spdk_blob_store *
shim_lvol_blobstore(struct spdk_lvol *lvol)
{
	return lvol->lvol_store->blobstore;
}

struct shim_destroy_req {
	shim_lvol_destroy_cb cb_fn;
	void *cb_arg;
};

#if SHIM_RESERVES
static void
shim_lvol_destroyed(void *cb_arg, int rc, const struct spdk_rs_lvol_busy *busy)
{
	struct shim_destroy_req *req = cb_arg;
	struct shim_lvol_busy ours = {};

	if (busy != NULL) {
		ours.operation = busy->operation;
		ours.holder = busy->holder;
		ours.open_refs = busy->open_refs;
		ours.clones = busy->clones;
		ours.num_clones = busy->num_clones;
	}
	req->cb_fn(req->cb_arg, rc, busy != NULL ? &ours : NULL);
	free(req);
}
#else
static void
shim_lvol_destroyed(void *cb_arg, int rc)
{
	struct shim_destroy_req *req = cb_arg;

	req->cb_fn(req->cb_arg, rc, NULL);
	free(req);
}
#endif

void
shim_lvol_destroy(struct spdk_lvol *lvol, shim_lvol_destroy_cb cb_fn, void *cb_arg)
{
	struct shim_destroy_req *req;

	req = calloc(1, sizeof(*req));
	if (req == NULL) {
		cb_fn(cb_arg, -ENOMEM, NULL);
		return;
	}
	req->cb_fn = cb_fn;
	req->cb_arg = cb_arg;
#if SHIM_RESERVES
	vbdev_lvol_destroy_report(lvol, shim_lvol_destroyed, req);
#else
	vbdev_lvol_destroy(lvol, shim_lvol_destroyed, req);
#endif
}

#if SHIM_ENABLED
bool
shim_blob_cluster_is_allocated(struct spdk_blob *blob, uint64_t cluster)
{
	return spdk_rs_blob_cluster_is_allocated(blob, cluster);
}

int
shim_blob_lock(struct spdk_blob *blob, const char *operation)
{
	return spdk_rs_blob_lock(blob, operation);
}

void
shim_blob_unlock(struct spdk_blob *blob)
{
	spdk_rs_blob_unlock(blob);
}
#else
/* Nobody holds the lock without the patches, so nobody comes here to ask more. */
bool
shim_blob_cluster_is_allocated(struct spdk_blob *blob, uint64_t cluster)
{
	return false;
}

int
shim_blob_lock(struct spdk_blob *blob, const char *operation)
{
	return -ENOTSUP;
}

void
shim_blob_unlock(struct spdk_blob *blob)
{
}
#endif

#if SHIM_RESERVES
void
shim_blob_write_xattr(struct spdk_blob *blob, const char *name, const void *value,
		      uint16_t value_len, spdk_blob_op_complete cb_fn, void *cb_arg)
{
	spdk_rs_blob_write_xattr(blob, name, value, value_len, cb_fn, cb_arg);
}

void
shim_blob_put(struct spdk_blob *blob, spdk_blob_op_complete cb_fn, void *cb_arg)
{
	spdk_rs_blob_put(blob, cb_fn, cb_arg);
}

const char *
shim_lvol_operation(struct spdk_lvol *lvol)
{
	return spdk_rs_lvol_operation(lvol);
}
#else
void
shim_blob_write_xattr(struct spdk_blob *blob, const char *name, const void *value,
		      uint16_t value_len, spdk_blob_op_complete cb_fn, void *cb_arg)
{
	int rc;

	if (value != NULL) {
		rc = spdk_blob_set_xattr(blob, name, value, value_len);
	} else {
		rc = spdk_blob_remove_xattr(blob, name);
	}
	if (rc != 0) {
		cb_fn(cb_arg, rc);
		return;
	}
	spdk_blob_sync_md(blob, cb_fn, cb_arg);
}

void
shim_blob_put(struct spdk_blob *blob, spdk_blob_op_complete cb_fn, void *cb_arg)
{
	spdk_blob_close(blob, cb_fn, cb_arg);
}

const char *
shim_lvol_operation(struct spdk_lvol *lvol)
{
	return NULL;
}
#endif
