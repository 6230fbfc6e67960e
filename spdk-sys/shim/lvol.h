/*   SPDX-License-Identifier: BSD-3-Clause
 *   Copyright (c) the spdk-rs authors. All rights reserved.
 */

/* Logical volumes: walks, what an lvol is, and the patches' functions where this SPDK has them. All of
 * it is for the thread of the lvstore's metadata. */

#ifndef SPDK_SYS_SHIM_LVOL_H
#define SPDK_SYS_SHIM_LVOL_H

/** Level of the patches that the headers carry: 0 for none, odd for the enabling part only. */
int shim_patchlevel(void);

/** Whether destroying a busy lvol leaves it whole and says who holds it. */
bool shim_lvol_destroy_is_reserved(void);

/** What an lvstore is. The pointers live until the caller returns to the reactor. */
struct shim_lvs_info {
	const char *name;
	struct spdk_uuid uuid;
	/** Name of the bdev that it lies on. */
	const char *base_bdev;
	/** In bytes. */
	uint64_t cluster_size;
	uint64_t total_clusters;
	uint64_t free_clusters;
};

/** What an lvol is. The pointers live until the caller returns to the reactor. */
struct shim_lvol_info {
	const char *name;
	struct spdk_uuid uuid;
	/** Name of its bdev; NULL if it has none. */
	const char *bdev;
	/** Name of the snapshot beneath it; NULL if there is none. */
	const char *parent;
	/** In bytes; 0 if its blob is not open. */
	uint64_t size;
	bool thin;
	bool snapshot;
	bool clone;
	bool read_only;
};

/** The first lvstore, and the next. NULL at the end. One that is being removed is left out. */
struct spdk_lvol_store *shim_lvs_next(struct spdk_lvol_store *prev);
void shim_lvs_info(struct spdk_lvol_store *lvs, struct shim_lvs_info *info);

/** Lists of what a blobstore has noted as used. */
enum shim_bs_list {
	SHIM_BS_USED_PAGES,
	SHIM_BS_USED_CLUSTERS,
	SHIM_BS_USED_BLOBS,
};

/** Copies a list, a bit for each. Returns how many bits it has; 0 if this SPDK cannot tell. */
uint32_t shim_lvs_get_used(struct spdk_lvol_store *lvs, enum shim_bs_list list, uint8_t *bits,
			   size_t len);

/** Whether an operation on the lvstore or on one of its lvols is under way. */
bool shim_lvs_is_busy(struct spdk_lvol_store *lvs);

/** The first lvol of the lvstore, and the next. NULL at the end. */
struct spdk_lvol *shim_lvol_next(struct spdk_lvol_store *lvs, struct spdk_lvol *prev);

/** The lvol of the lvstore with that name or UUID; NULL: there is none. */
struct spdk_lvol *shim_lvol_by_name(struct spdk_lvol_store *lvs, const char *name);
struct spdk_lvol *shim_lvol_by_uuid(struct spdk_lvol_store *lvs, const struct spdk_uuid *uuid);

void shim_lvol_info(struct spdk_lvol *lvol, struct shim_lvol_info *info);

/** Names of the lvol's clones: at most max are written. Returns how many there are. */
size_t shim_lvol_clones(struct spdk_lvol *lvol, const char **names, size_t max);

/** The lvol's blob; NULL if it is not open. */
struct spdk_blob *shim_lvol_blob(struct spdk_lvol *lvol);
uint64_t shim_lvol_blob_id(struct spdk_lvol *lvol);
struct spdk_blob_store *shim_lvol_blobstore(struct spdk_lvol *lvol);

/** Who holds an lvol that was refused. Valid during the callback. */
struct shim_lvol_busy {
	const char *operation;
	const char *holder;
	uint32_t open_refs;
	const char *const *clones;
	uint32_t num_clones;
};

/** busy is NULL unless the lvol was refused because of it and this SPDK can tell. */
typedef void (*shim_lvol_destroy_cb)(void *cb_arg, int rc, const struct shim_lvol_busy *busy);

void shim_lvol_destroy(struct spdk_lvol *lvol, shim_lvol_destroy_cb cb_fn, void *cb_arg);

/** The patches' blob functions; without the patches the lock is refused with -ENOTSUP. */
bool shim_blob_cluster_is_allocated(struct spdk_blob *blob, uint64_t cluster);
int shim_blob_lock(struct spdk_blob *blob, const char *operation);
void shim_blob_unlock(struct spdk_blob *blob);

/** Which operation keeps others away from the lvol; NULL if none does, or this SPDK can not tell. */
const char *shim_lvol_operation(struct spdk_lvol *lvol);

/** See spdk_rs_blob_write_xattr(). Without the patches that put the old value back, an error leaves the
 * new one in memory. */
void shim_blob_write_xattr(struct spdk_blob *blob, const char *name, const void *value,
			   uint16_t value_len, spdk_blob_op_complete cb_fn, void *cb_arg);

/** See spdk_rs_blob_put(); spdk_blob_close() without the patches. */
void shim_blob_put(struct spdk_blob *blob, spdk_blob_op_complete cb_fn, void *cb_arg);

#endif
