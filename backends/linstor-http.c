/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests to a LINSTOR controller: which of several, over TLS, as whom, and
 * never twice. It knows HTTP, and no resource.
 *
 * A change that may have been done is not sent again: a lost answer is told as
 * such. So changes go over a connection of their own, as libcurl sends once
 * more what an idle one has swallowed. Redirects are not followed (a POST may
 * become a GET): the session goes where they lead, if the URI names that host,
 * and asks there. Secrets go over TLS only.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/err.h"
#include "base/str.h"
#include "linstor-private.h"
#include "linstor.h"
#include "volume.h"

enum {
    CONNECT_MS = 5000,
    LOOK_MS = 20000,
    REPLY_MAX = 16 << 20,
    SECRET_MAX = 8192,
    REDIRECTS_MAX = 3,
    PORT = 3370,
    PORT_TLS = 3371,
};

struct body {
    char *text;
    size_t length;
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static int choose(struct linstor_session *session, struct err **errp);
static int take_secret(struct linstor_session *session, struct err **errp);
static int set_access(const struct linstor_session *session);
static int perform(struct linstor_session *session, const char *method,
                   const char *path, const json_t *body,
                   struct linstor_reply *ret, struct err **errp);
static int go_there(struct linstor_session *session, struct err **errp);
static int check_access(const struct linstor_session *session,
                        const struct linstor_reply *reply, struct err **errp);

static void init_curl(void)
{
    (void)curl_global_init(CURL_GLOBAL_DEFAULT);
}

uint64_t linstor_now_ms(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void linstor_pause(void)
{
    const struct timespec pause = {.tv_nsec =
                                       linstor_places()->again_ms * 1000000L};
    (void)nanosleep(&pause, NULL);
}

void linstor_reply_done(struct linstor_reply *reply)
{
    json_decref(reply->json);
    *reply = (struct linstor_reply){0};
}

int linstor_session_open(struct linstor_session *session,
                         const struct linstor_volume *self, unsigned limit_ms,
                         struct err **errp)
{
    (void)pthread_once(&curl_once, init_curl);
    session->self = self;
    session->until_ms = limit_ms != 0 ? linstor_now_ms() + limit_ms : 0;
    session->curl = curl_easy_init();
    if (session->curl == NULL) {
        return -ENOMEM;
    }
    int r = take_secret(session, errp);
    return r == 0 ? choose(session, errp) : r;
}

void linstor_session_done(struct linstor_session *session)
{
    if (session->curl != NULL) {
        curl_easy_cleanup(session->curl);
    }
    free(session->base);
    free(session->location);
    str_wipe_free(session->secret);
    memset(session, 0, sizeof(*session));
}

int linstor_call(struct linstor_session *session, const char *method,
                 const char *path, const json_t *body,
                 struct linstor_reply *ret, struct err **errp)
{
    for (unsigned i = 0; i < REDIRECTS_MAX; i++) {
        int r = perform(session, method, path, body, ret, errp);
        if (r != 0) {
            return r;
        }
        if (ret->status < 300 || ret->status > 399) {
            return check_access(session, ret, errp);
        }
        linstor_reply_done(ret);
        r = go_there(session, errp);
        if (r < 0) {
            return r;
        }
    }
    return err_set(errp, -ELOOP, session->self->volume.name,
                   "the controllers send us from one to the other");
}

/* --- which controller --- */

/* "a", "a:1234", "[::1]:1234" -> a URL without a path. */
static char *base_of(const struct linstor_volume *self, const char *at,
                     size_t length)
{
    const char *bracket = memchr(at, ']', length);
    const char *from = bracket != NULL ? bracket : at;
    const char *colon = memchr(from, ':', length - (size_t)(from - at));
    bool tls = self->tls;
    if (colon != NULL) {
        size_t rest = length - (size_t)(colon - at);
        tls = tls ||
              (rest == strlen(":3371") && strncmp(colon, ":3371", rest) == 0);
        return str_printf("%s://%.*s", tls ? "https" : "http", (int)length, at);
    }
    return str_printf("%s://%.*s:%d", tls ? "https" : "http", (int)length, at,
                      tls ? PORT_TLS : PORT);
}

static int try_one(struct linstor_session *session, struct err **errp)
{
    _cleanup_reply_ struct linstor_reply reply = {0};
    int r = 0;
    for (unsigned i = 0; i < REDIRECTS_MAX; i++) {
        r = perform(session, "GET", "/health", NULL, &reply, errp);
        if (r < 0 || reply.status < 300 || reply.status > 399) {
            break;
        }
        linstor_reply_done(&reply);
        r = go_there(session, errp);
        if (r < 0) {
            return r;
        }
    }
    if (r == 0 && reply.status != 200) {
        r = err_set(errp, -EHOSTDOWN, session->self->volume.name,
                    "the controller at %s is not healthy (HTTP %ld)",
                    session->base, reply.status);
    }
    return r;
}

/* Only one of them is active; the others refuse or do not answer. */
static int choose(struct linstor_session *session, struct err **errp)
{
    const struct linstor_volume *self = session->self;
    int r = -EINVAL;
    for (const char *at = self->controllers; *at != '\0';) {
        size_t length = strcspn(at, ",");
        free(session->base);
        session->base = base_of(self, at, length);
        if (session->base == NULL) {
            return -ENOMEM;
        }
        r = try_one(session, errp);
        if (r == 0) {
            if (errp != NULL) {
                *errp = err_free(*errp); /* of one before it */
            }
            return 0;
        }
        at += length + (at[length] == ',' ? 1 : 0);
    }
    return r;
}

/* --- as whom --- */

static int read_secret(const struct linstor_volume *self, const char *path,
                       char **ret, struct err **errp)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return volume_fail(errp, &self->volume, -errno, "cannot read '%s'",
                           path);
    }
    char *text = calloc(1, SECRET_MAX);
    size_t n = text != NULL ? fread(text, 1, SECRET_MAX - 1, file) : 0;
    (void)fclose(file);
    if (text == NULL) {
        return -ENOMEM;
    }
    text[strcspn(text, "\r\n")] = '\0';
    if (n == 0 || *text == '\0') {
        str_wipe_free(text);
        return err_set(errp, -EINVAL, self->volume.name, "'%s' is empty", path);
    }
    *ret = text;
    return 0;
}

static int take_secret(struct linstor_session *session, struct err **errp)
{
    const struct linstor_volume *self = session->self;
    const char *path = self->token != NULL ? self->token : self->password;
    return path != NULL ? read_secret(self, path, &session->secret, errp) : 0;
}

static bool is_tls(const struct linstor_session *session)
{
    return str_starts(session->base, "https:");
}

static int set_access(const struct linstor_session *session)
{
    const struct linstor_volume *self = session->self;
    CURL *curl = session->curl;
    CURLcode code = CURLE_OK;
    if (self->ca != NULL) {
        code = curl_easy_setopt(curl, CURLOPT_CAINFO, self->ca);
    }
    if (code == CURLE_OK && self->cert != NULL) {
        code = curl_easy_setopt(curl, CURLOPT_SSLCERT, self->cert);
    }
    if (code == CURLE_OK && self->key != NULL) {
        code = curl_easy_setopt(curl, CURLOPT_SSLKEY, self->key);
    }
    /* Else OpenSSL asks whoever sits at the terminal, and waits for him. */
    if (code == CURLE_OK && self->cert != NULL) {
        code = curl_easy_setopt(curl, CURLOPT_KEYPASSWD, "");
    }
    if (session->secret == NULL || !is_tls(session) || code != CURLE_OK) {
        return code == CURLE_OK ? 0 : -ENOMEM;
    }
    if (self->token != NULL) {
        code = curl_easy_setopt(curl, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
        if (code == CURLE_OK) {
            code =
                curl_easy_setopt(curl, CURLOPT_XOAUTH2_BEARER, session->secret);
        }
        return code == CURLE_OK ? 0 : -ENOMEM;
    }
    code = curl_easy_setopt(curl, CURLOPT_HTTPAUTH, CURLAUTH_BASIC);
    if (code == CURLE_OK) {
        code = curl_easy_setopt(curl, CURLOPT_USERNAME, self->user);
    }
    if (code == CURLE_OK) {
        code = curl_easy_setopt(curl, CURLOPT_PASSWORD, session->secret);
    }
    return code == CURLE_OK ? 0 : -ENOMEM;
}

static int check_access(const struct linstor_session *session,
                        const struct linstor_reply *reply, struct err **errp)
{
    const struct linstor_volume *self = session->self;
    if (reply->status != 401 && reply->status != 403) {
        return 0;
    }
    if (session->secret != NULL) {
        return err_set(errp, -EACCES, self->volume.name,
                       "the controller refuses us (HTTP %ld), with what '%s'"
                       " holds",
                       reply->status,
                       self->token != NULL ? self->token : self->password);
    }
    (void)err_set(errp, -EACCES, self->volume.name,
                  "the controller wants to know who we are (HTTP %ld)",
                  reply->status);
    err_hint(errp, "token=FILE, or user=NAME&password=FILE, and tls=yes");
    return -EACCES;
}

/* --- a redirect --- */

static size_t host_of(const char *url, const char **ret)
{
    const char *slashes = strstr(url, "://");
    const char *at = slashes != NULL ? slashes + 3 : url;
    *ret = at;
    return *at == '[' ? strcspn(at, "]") + 1 : strcspn(at, ":/?,");
}

/* Whoever answers for a controller could send us, and our token, anywhere. */
static bool is_named(const struct linstor_volume *self, const char *url)
{
    const char *host = NULL;
    size_t length = host_of(url, &host);
    for (const char *at = self->controllers; *at != '\0';) {
        const char *known = NULL;
        size_t known_length = host_of(at, &known);
        if (known_length == length && strncasecmp(known, host, length) == 0) {
            return true;
        }
        at += strcspn(at, ",");
        at += *at == ',' ? 1 : 0;
    }
    return false;
}

static int go_there(struct linstor_session *session, struct err **errp)
{
    const char *to = session->location;
    const char *object = session->self->volume.name;
    bool secure = to != NULL && str_starts(to, "https://");
    if (to == NULL || (!secure && !str_starts(to, "http://"))) {
        return err_set(errp, -EPROTO, object,
                       "the controller sends us on, and does not say where");
    }
    if (!is_named(session->self, to) || (is_tls(session) && !secure)) {
        (void)err_set(errp, -EPROTO, object, "the controller sends us to %.64s",
                      to);
        err_hint(errp, "name that host in the URI if it is a controller:"
                       " linstor://HOST,HOST/...");
        return -EPROTO;
    }
    size_t scheme = secure ? strlen("https://") : strlen("http://");
    size_t length = scheme + strcspn(to + scheme, "/?");
    char *base = strndup(to, length);
    if (base == NULL) {
        return -ENOMEM;
    }
    free(session->base);
    session->base = base;
    return 0;
}

/* --- one request --- */

static size_t take_body(char *bytes, size_t size, size_t count, void *data)
{
    struct body *body = data;
    size_t length = size * count;
    if (length > REPLY_MAX - body->length) {
        return 0;
    }
    char *longer = realloc(body->text, body->length + length + 1);
    if (longer == NULL) {
        return 0;
    }
    memcpy(longer + body->length, bytes, length);
    body->text = longer;
    body->length += length;
    longer[body->length] = '\0';
    return length;
}

static long limit_of(const struct linstor_session *session, bool look)
{
    uint64_t limit = look ? LOOK_MS : linstor_places()->call_ms;
    uint64_t now = linstor_now_ms();
    if (session->until_ms != 0) {
        uint64_t left = session->until_ms > now ? session->until_ms - now : 1;
        limit = limit < left ? limit : left;
    }
    return (long)limit;
}

static int prepare(struct linstor_session *session, const char *method,
                   const char *url, const char *text, struct body *body,
                   struct curl_slist *headers)
{
    CURL *curl = session->curl;
    bool look = str_eq(method, "GET");
    curl_easy_reset(curl);

    const struct {
        CURLoption option;
        long value;
    } numbers[] = {
        {CURLOPT_NOSIGNAL,          1               },
        {CURLOPT_FOLLOWLOCATION,    0               },
        {CURLOPT_CONNECTTIMEOUT_MS, CONNECT_MS      },
        {CURLOPT_TIMEOUT_MS,        limit_of(session, look)},
        {CURLOPT_FRESH_CONNECT,                         look ? 0 : 1                    },
        {CURLOPT_FORBID_REUSE,                         look ? 0 : 1 },
        {CURLOPT_SSL_VERIFYPEER,                         1                  },
        {CURLOPT_SSL_VERIFYHOST,                         2 },
    };

    CURLcode code = CURLE_OK;
    for (size_t i = 0; code == CURLE_OK && i < ARRAY_SIZE(numbers); i++) {
        code = curl_easy_setopt(curl, numbers[i].option, numbers[i].value);
    }

    const struct {
        CURLoption option;
        const void *value;
    } texts[] = {
        {CURLOPT_URL,           url               },
        {CURLOPT_CUSTOMREQUEST, method            },
        {CURLOPT_PROTOCOLS_STR, "http,https"      },
        {CURLOPT_PROXY,         ""                },
        {CURLOPT_HTTPHEADER,    headers           },
        {CURLOPT_WRITEDATA,     body              },
        {CURLOPT_POSTFIELDS,    look ? NULL : text},
    };

    for (size_t i = 0; code == CURLE_OK && i < ARRAY_SIZE(texts); i++) {
        if (texts[i].value != NULL) {
            code = curl_easy_setopt(curl, texts[i].option, texts[i].value);
        }
    }
    if (code == CURLE_OK) {
        code = curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
    }
    return code == CURLE_OK ? 0 : -ENOMEM;
}

/* Nothing of it has left us, so nothing can have been done. */
static bool is_unsent(CURLcode code)
{
    return code == CURLE_COULDNT_CONNECT ||
           code == CURLE_COULDNT_RESOLVE_HOST ||
           code == CURLE_SSL_CONNECT_ERROR ||
           code == CURLE_PEER_FAILED_VERIFICATION ||
           code == CURLE_SSL_CACERT_BADFILE || code == CURLE_SSL_CERTPROBLEM;
}

static int told(const struct linstor_session *session, CURLcode code, bool look,
                struct err **errp)
{
    long ms = limit_of(session, look);
    int r = is_unsent(code)                    ? -EHOSTUNREACH
            : code == CURLE_OPERATION_TIMEDOUT ? -ETIMEDOUT
            : code == CURLE_OUT_OF_MEMORY      ? -ENOMEM
                                               : -ECONNRESET;
    if (r == -ETIMEDOUT) {
        (void)err_set(errp, r, session->self->volume.name,
                      "the controller at %s does not answer within %ld s",
                      session->base, (ms + 999) / 1000);
    } else {
        (void)err_set(errp, r, session->self->volume.name,
                      "the controller at %s: %s", session->base,
                      curl_easy_strerror(code));
    }
    if (code == CURLE_PEER_FAILED_VERIFICATION) {
        err_hint(errp, "ca=FILE names who has signed its certificate");
    }
    return look || is_unsent(code) || r == -ENOMEM ? r : LINSTOR_E_LOST;
}

static int keep_reply(struct linstor_session *session, const struct body *body,
                      struct linstor_reply *ret)
{
    char *where = NULL;
    (void)curl_easy_getinfo(session->curl, CURLINFO_RESPONSE_CODE,
                            &ret->status);
    (void)curl_easy_getinfo(session->curl, CURLINFO_REDIRECT_URL, &where);
    free(session->location);
    session->location = where != NULL ? strdup(where) : NULL;
    ret->json = body->text != NULL
                    ? json_loadb(body->text, body->length, 0, NULL)
                    : NULL;
    return where != NULL && session->location == NULL ? -ENOMEM : 0;
}

static int perform(struct linstor_session *session, const char *method,
                   const char *path, const json_t *body,
                   struct linstor_reply *ret, struct err **errp)
{
    struct body got = {0};
    struct curl_slist *headers =
        curl_slist_append(NULL, "Content-Type: application/json");
    _cleanup_free_ char *url = str_printf("%s%s", session->base, path);
    _cleanup_free_ char *text =
        body != NULL ? json_dumps(body, JSON_COMPACT) : strdup("");
    bool look = str_eq(method, "GET");
    bool open = str_eq(path, "/health"); /* it asks nobody who he is */
    int r = headers != NULL && url != NULL && text != NULL
                ? prepare(session, method, url, text, &got, headers)
                : -ENOMEM;
    if (r == 0 && session->secret != NULL && !open && !is_tls(session)) {
        (void)err_set(errp, -EPERM, session->self->volume.name,
                      "what proves who we are is not sent without TLS");
        err_hint(errp, "append tls=yes");
        r = -EPERM;
    }
    if (r == 0) {
        r = set_access(session);
    }
    if (r == 0) {
        CURLcode code = curl_easy_perform(session->curl);
        r = code == CURLE_OK ? keep_reply(session, &got, ret)
                             : told(session, code, look, errp);
    }
    curl_slist_free_all(headers);
    free(got.text);
    return r;
}
