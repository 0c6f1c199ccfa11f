"""How the page looks: plain, readable on a telephone, and dark where the reader's screen is."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5c6370; --line: #d8dce2; --paper: #fff; --card: #f6f7f9;
  --good: #1a7f37; --bad: #b42318; --link: #0b62c4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --soft: #9aa2ad; --line: #363b43; --paper: #16181c; --card: #1f2227; --good: #57b26b;
    --bad: #ee7c70; --link: #74b0f4 } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 68rem; margin: auto; padding: 1rem }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem }
a { color: var(--link); overflow-wrap: anywhere }
.findings { padding-left: 1.2rem; font-size: 1.05rem } .findings li { margin: .4rem 0 }
.note, small { color: var(--soft); font-size: .88rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper) }
table.words th, table.words td { text-align: left }
thead th { color: var(--soft); font-weight: 600 }
img { max-width: 100%; background: #fff; border-radius: 6px }
details { border-bottom: 1px solid var(--line); padding: .4rem 0 }
summary { cursor: pointer; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem; margin: .6rem 0 }
.card { background: var(--card); border-radius: 6px; border-left: 4px solid var(--line); padding: .5rem .7rem;
  min-width: 0 }
.card.passed { border-color: var(--good) } .card.failed { border-color: var(--bad) }
.card p { margin: .3rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate }
"""
