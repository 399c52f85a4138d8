/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which of several controllers is asked, over TLS, and as whom. */
#include "linstor-fixture.h"

TestSuite(linstor_access, .init = prepare, .fini = tidy, .timeout = 120);

/* --- which controller, and as whom --- */

/* A certificate for 127.0.0.1 that has signed itself. */
static void make_certificate(const char *cert, const char *key, bool encrypted)
{
    pid_t pid = fork();
    int status = -1;
    cr_assert_geq(pid, 0);
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        (void)dup2(null, STDERR_FILENO);
        (void)execlp("openssl", "openssl", "req", "-x509", "-newkey", "ec",
                     "-pkeyopt", "ec_paramgen_curve:P-256", "-passout",
                     "pass:SECRET", encrypted ? "-batch" : "-nodes", "-days",
                     "2", "-subj", "/CN=controller", "-addext",
                     "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out",
                     cert, NULL);
        _exit(127);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    if (status != 0) {
        cr_skip_test("no openssl");
    }
}

static char *cert_path, *key_path;

static void start_tls(const char *const *more)
{
    const char *args[16] = {"--tls"};
    unsigned n = 3;
    cert_path = strdup(in("cert.pem"));
    key_path = strdup(in("key.pem"));
    make_certificate(cert_path, key_path, false);
    args[1] = cert_path;
    args[2] = key_path;
    while (*more != NULL) {
        args[n++] = *more++;
    }
    start(args);
    put("token", "TOKEN\n");
    put("other", "OTHER");
}

static int probe_with(const char *hosts, const char *options, struct err **errp)
{
    struct volume_info info;
    _cleanup_(volume_freep) struct volume *volume = NULL;
    _cleanup_free_ char *uri =
        str_printf("linstor://%s/group/r1?node=alpha%s%s", hosts,
                   *options != '\0' ? "&" : "", options);
    cr_assert_eq(volume_parse(uri, &volume, NULL), 0, "%s", uri);
    return volume->ops->probe(volume, &info, errp);
}

static char *here(void)
{
    static char host[64];
    (void)snprintf(host, sizeof(host), "127.0.0.1:%s", port);
    return host;
}

static void assert_refused(const char *options, int code, const char *hint)
{
    _cleanup_err_ struct err *err = NULL;
    int r = probe_with(here(), options, &err);
    cr_assert_eq(r, code, "%s: %d %s", options, r,
                 err != NULL ? err->desc : "no error");
    _cleanup_free_ char *text = err_text(err);
    cr_assert_null(strstr(text, "TOKEN"));
    cr_assert_null(strstr(text, "OTHER"));
    cr_assert(hint == NULL ||
                  (err->hint != NULL && strstr(err->hint, hint) != NULL),
              "%s: %s", options, text);
}

Test(linstor_access, token_goes_over_tls_only)
{
    static const char *const args[] = {"--token", "TOKEN", NULL};
    start_tls(args);
    _cleanup_free_ char *tls = str_printf("tls=yes&ca=%s", cert_path);
    _cleanup_free_ char *good = str_printf("%s&token=%s", tls, in("token"));
    _cleanup_free_ char *bad = str_printf("%s&token=%s", tls, in("other"));
    _cleanup_free_ char *none = str_printf("%s&token=%s", tls, in("absent"));
    _cleanup_free_ char *strange = str_printf("tls=yes&token=%s", in("token"));
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(probe_with(here(), good, &err), 0, "%s",
                 err != NULL ? err->desc : "?");
    cr_assert_not_null(strstr(get("calls"), "Bearer TOKEN"));
    assert_refused(bad, -EACCES, NULL);
    assert_refused(tls, -EACCES, "token=FILE");
    assert_refused(none, -ENOENT, NULL);
    (void)unlink(in("calls"));
    assert_refused(strange, -EHOSTUNREACH, "ca=FILE");
    cr_assert_str_eq(get("calls"), "", "nobody is asked who is not known");
    free(cert_path);
    free(key_path);
}

Test(linstor_access, token_is_not_sent_in_clear)
{
    start(NULL);
    put("token", "TOKEN\n");
    _cleanup_free_ char *options = str_printf("token=%s", in("token"));
    assert_refused(options, -EPERM, "tls=yes");
    cr_assert_null(strstr(get("calls"), "TOKEN"));
}

Test(linstor_access, name_and_password_or_a_certificate_are_shown)
{
    char ca[128];
    const char *args[] = {"--user", "me:TOKEN", "--client-ca", ca, NULL};
    (void)snprintf(ca, sizeof(ca), "%s", in("cert.pem"));
    start_tls(args);
    _cleanup_free_ char *nobody = str_printf("tls=yes&ca=%s", cert_path);
    _cleanup_free_ char *shown =
        str_printf("%s&cert=%s&key=%s", nobody, cert_path, key_path);
    _cleanup_free_ char *both =
        str_printf("%s&user=me&password=%s", shown, in("token"));
    _cleanup_err_ struct err *err = NULL;
    cr_assert_lt(probe_with(here(), nobody, NULL), 0);
    assert_refused(shown, -EACCES, "password=FILE");
    cr_assert_eq(probe_with(here(), both, &err), 0, "%s",
                 err != NULL ? err->desc : "?");
    free(cert_path);
    free(key_path);
}

/* Whoever is asked for its passphrase, the engine stands still meanwhile. */
Test(linstor_access, encrypted_key_asks_nobody)
{
    int typed[2];
    char left[8] = "";
    static const char *const args[] = {NULL};
    start_tls(args);
    make_certificate(in("own.pem"), in("own.key"), true);
    _cleanup_free_ char *options =
        str_printf("tls=yes&ca=%s&cert=%s&key=%s", cert_path, in("own.pem"),
                   in("own.key"));
    (void)setsid(); /* without a terminal it asks standard input */
    cr_assert_eq(pipe2(typed, O_CLOEXEC), 0);
    cr_assert_eq(write(typed[1], "SECRET\n", 7), 7);
    cr_assert_eq(close(typed[1]), 0);
    cr_assert_eq(dup2(typed[0], STDIN_FILENO), STDIN_FILENO);
    assert_refused(options, -EHOSTUNREACH, NULL);
    cr_assert_eq(read(STDIN_FILENO, left, sizeof(left)), 7, "it was asked for");
    free(cert_path);
    free(key_path);
}

Test(linstor_access, port_alone_tells_of_tls)
{
    static const char *const hosts[] = {"127.0.0.1:33", "127.0.0.1:337"};
    for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
        _cleanup_err_ struct err *err = NULL;
        _cleanup_free_ char *wanted = str_printf(" http://%s:", hosts[i]);
        cr_assert_eq(probe_with(hosts[i], "", &err), -EHOSTUNREACH);
        cr_assert_not_null(strstr(err->desc, wanted), "%s", err->desc);
    }
    _cleanup_err_ struct err *err = NULL;
    cr_assert_lt(probe_with("127.0.0.1:3371", "", &err), 0);
    cr_assert_not_null(strstr(err->desc, "https://"), "%s", err->desc);
}

Test(linstor_access, first_controller_that_is_healthy_is_asked)
{
    char other[16];
    start(NULL);
    cr_assert_eq(mkdir(in("second"), 0700), 0);
    start_at(in("second"), other, NULL);
    _cleanup_free_ char *hosts = str_printf("127.0.0.1:1,%s", here());
    _cleanup_free_ char *both = str_printf("%s,127.0.0.1:%s", here(), other);
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(probe_with(hosts, "", NULL), 0, "the first refuses");
    put("faults", "GET /health *500-before");
    cr_assert_eq(probe_with(both, "", NULL), 0, "the first is not healthy");
    cr_assert_not_null(strstr(get("second/calls"), "/v1/nodes"));
    cr_assert_eq(probe_with(hosts, "", &err), -EHOSTDOWN);
    cr_assert_eq(probe_with("127.0.0.1:1", "", NULL), -EHOSTUNREACH);
}

Test(linstor_access, redirect_is_followed_to_those_who_are_named)
{
    char plain[16], loop[16], lost[16];
    static const char *const args[] = {"--token", "TOKEN", NULL};
    start_tls(args);
    _cleanup_free_ char *good = str_printf("https://127.0.0.1:%s", port);
    _cleanup_free_ char *other = str_printf("https://localhost:%s", port);
    const char *const to_good[] = {"--redirect", good, NULL};
    const char *const to_other[] = {"--redirect", other, NULL};
    static const char *const to_none[] = {"--redirect", "ftp://x", NULL};
    const char *const names[] = {"plain", "loop", "lost"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        cr_assert_eq(mkdir(in(names[i]), 0700), 0);
    }
    start_at(in("plain"), plain, to_good);
    start_at(in("loop"), loop, to_other);
    start_at(in("lost"), lost, to_none);
    _cleanup_free_ char *options =
        str_printf("ca=%s&token=%s", cert_path, in("token"));
    _cleanup_free_ char *a = str_printf("127.0.0.1:%s", plain);
    _cleanup_free_ char *b = str_printf("127.0.0.1:%s", loop);
    _cleanup_free_ char *c = str_printf("127.0.0.1:%s", lost);
    _cleanup_err_ struct err *err = NULL, *refused = NULL;
    cr_assert_eq(probe_with(a, options, &err), 0, "%s",
                 err != NULL ? err->desc : "?");
    cr_assert_null(strstr(get("plain/calls"), "TOKEN"));
    cr_assert_eq(probe_with(b, options, &refused), -EPROTO);
    cr_assert_not_null(strstr(refused->desc, "localhost"));
    cr_assert_eq(probe_with(c, options, NULL), -EPROTO);
    free(cert_path);
    free(key_path);
}
