/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of the LINSTOR backend share: a volume's name, one
 * conversation with a controller, what it answers, and how a resource stands.
 */
#pragma once

#include <curl/curl.h>
#include <jansson.h>

#include "backend.h"

enum { LINSTOR_NAME = 49, LINSTOR_NODES = 64 };

struct linstor_volume {
    struct volume volume;
    char *controllers; /* "a:3370,b" */
    char *group;
    char *resource;
    char *node; /* how LINSTOR calls this host; NULL: as the kernel */
    bool tls;
    char *user;
    /* Files: no secret is in a URI. */
    char *password;
    char *token;
    char *ca;
    char *cert;
    char *key;
    char *path; /* the device as last seen, or NULL */
};

const struct linstor_volume *linstor_of(const struct volume *volume);

/* --- linstor-http.c --- */

/* The answer is lost: it may have been done, or may be yet. Read again. */
enum { LINSTOR_E_LOST = 1 };

struct linstor_reply {
    long status;
    json_t *json; /* NULL: it has no body of that kind */
};

void linstor_reply_done(struct linstor_reply *reply);
#define _cleanup_reply_ _cleanup_(linstor_reply_done)

/* One act's conversation with the controller that is active. */
struct linstor_session {
    const struct linstor_volume *self;
    CURL *curl;
    char *base; /* "https://a:3371" */
    char *secret;
    char *location;    /* where a redirect leads */
    uint64_t until_ms; /* no call goes on for longer than that; 0: no limit */
};

/* Finds it: the first that is healthy. */
int linstor_session_open(struct linstor_session *session,
                         const struct linstor_volume *self, unsigned limit_ms,
                         struct err **errp);
void linstor_session_done(struct linstor_session *session);
#define _cleanup_session_ _cleanup_(linstor_session_done)

uint64_t linstor_now_ms(void);
void linstor_pause(void); /* between two looks */

/*
 * Sends one request, once: 'method' is GET, POST, PUT or DELETE, 'body' may be
 * NULL. 0 whatever the controller answers; LINSTOR_E_LOST where it is unknown
 * what a change has come to, also without a message.
 */
int linstor_call(struct linstor_session *session, const char *method,
                 const char *path, const json_t *body,
                 struct linstor_reply *ret, struct err **errp);

/* --- linstor-reply.c, pure --- */

enum linstor_code {
    LINSTOR_NO_DEFINITION = 301,
    LINSTOR_NO_GROUP = 317,
    LINSTOR_TAKEN = 501,
    LINSTOR_IN_USE = 997,
    LINSTOR_NOT_CONNECTED = 1002, /* a warning, as the next */
    LINSTOR_NOT_UPDATED = 1003,
};

/* ret_code, of which the top bits tell an error; of which the low ones what. */
bool linstor_is_error(json_int_t ret_code);
unsigned linstor_code_of(json_int_t ret_code);

/* 0 if no entry is an error; else -EREMOTEIO in the server's own words. */
int linstor_check(const struct linstor_volume *self, const char *what,
                  const struct linstor_reply *reply, unsigned *ret_code,
                  struct err **errp);
/* Whether a warning says that 'node' has not been told of the change. */
bool linstor_warns_of(const struct linstor_reply *reply, const char *node);
/* "1.22.0" -> 1022; 0: unknown. */
unsigned linstor_rest_version(const char *text);

/* One resource: the volume on a node. */
struct linstor_replica {
    char node[LINSTOR_NAME * 2];
    bool diskless;
    bool tiebreaker;
    bool deleting;
    bool answers; /* the satellite does; else what follows is not known */
    bool in_use;
    bool drbd;
    bool plain; /* nothing is between DRBD and what it is stored on */
    char device[96];
    char disk[32];  /* "UpToDate" */
    char pool[16];  /* "LVM_THIN" */
    char lacks[96]; /* a peer that it is not connected with; "": none */
    bool connecting;
    uint64_t size;
    uint64_t allocated; /* UINT64_MAX: unknown */
};

/* Zeroed before its first use. */
struct linstor_view {
    unsigned n;
    struct linstor_replica *replicas;
};

void linstor_view_done(struct linstor_view *view);
#define _cleanup_view_ _cleanup_(linstor_view_done)

/* -EPROTO where it cannot be understood. What the view held before is gone. */
int linstor_view_read(const json_t *json, const char *resource,
                      struct linstor_view *ret, struct err **errp);
const struct linstor_replica *linstor_view_at(const struct linstor_view *view,
                                              const char *node);
/* Who has it open; NULL: nobody who answers. */
const struct linstor_replica *linstor_view_user(
    const struct linstor_view *view);
/* Who has it open on another node than this one; NULL: nobody who answers. */
const struct linstor_replica *linstor_view_rival(
    const struct linstor_view *view, const char *node);
/* One whose state is not known, or NULL. */
const struct linstor_replica *linstor_view_silent(
    const struct linstor_view *view);
/* Every replica with a disk is thin and plain, and there is one. */
bool linstor_view_is_thin(const struct linstor_view *view);
/* The kinds of pool that a volume reads as zeroes on until it is written. */
bool linstor_is_thin(const char *provider_kind);
/*
 * A layer_stack or layer_data names DRBD and STORAGE only, or nothing: what is
 * between them makes something else of zeroes that nobody has written.
 */
bool linstor_is_plain(const json_t *layers);
/* volume_info.degraded; "" if every copy gets every write. */
void linstor_view_degraded(const struct linstor_view *view, const char *node,
                           char ret[96], bool *ret_heals);

/* --- linstor-look.c --- */

struct linstor_definition {
    bool there;
    bool deleting;
    bool plain; /* as far as it tells of its layers */
    char identity[64];
    char group[LINSTOR_NAME * 2];
    char mark[64]; /* the operation's and disk's, or "" */
};

/* Its name there, and that it is online. */
int linstor_find_node(struct linstor_session *session, char ret[64],
                      struct err **errp);
int linstor_look_definition(struct linstor_session *session,
                            struct linstor_definition *ret, struct err **errp);
int linstor_look_view(struct linstor_session *session, struct linstor_view *ret,
                      struct err **errp);
/* What every act begins with: the session, our node's name, what is there. */
int linstor_begin(struct linstor_session *session,
                  const struct linstor_volume *self, unsigned limit_ms,
                  char node[64], struct linstor_definition *ret,
                  struct err **errp);
/* What udev calls its device; NULL without memory. */
char *linstor_link_of(const struct linstor_volume *self);
/* What volume_info tells of a resource that is there. */
int linstor_tell(struct linstor_volume *self,
                 const struct linstor_definition *definition,
                 const struct linstor_view *view, const char *node,
                 struct volume_info *ret, struct err **errp);
/* The device and udev's link to it are there, with a size; else what lacks. */
bool linstor_is_ready(const struct linstor_volume *self,
                      const struct linstor_replica *replica, char ret[128]);
unsigned linstor_ready_ms(void);

extern const char linstor_mark[];       /* our property */
extern const char linstor_state_away[]; /* it is not on this node */

/* --- linstor-make.c --- */

/* How long one may go on with the controller; what fails to make removes. */
enum { LINSTOR_CREATE_MS = 600000, LINSTOR_REMOVE_MS = 300000 };

uint64_t linstor_round(uint64_t size);
int linstor_create(struct volume *volume, const char *temp, uint64_t size,
                   struct volume_info *ret, struct err **errp);
int linstor_publish(struct volume *volume, const char *temp,
                    const char *identity, struct err **errp);
int linstor_remove(struct volume *volume, const char *temp,
                   const char *identity, struct err **errp);
int linstor_attach(struct volume *volume, const struct volume_planned *planned,
                   struct volume_info *ret, struct err **errp);
int linstor_detach(struct volume *volume, const struct volume_planned *planned,
                   struct err **errp);
int linstor_probe(struct volume *volume, struct volume_info *ret,
                  struct err **errp);
int linstor_answer(struct volume *volume, struct volume_info *ret,
                   struct err **errp);
