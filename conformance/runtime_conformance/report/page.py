"""The look of index.html, light and dark."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--fg:#1d1d1f;--sub:#6b6b70;--line:#e5e5e2;--card:#fff;--good:#1a7f4b;
--goodbg:#e3f4ea;--bad:#b3261e;--badbg:#fbe6e4;--gap:#8a4b00;--gapbg:#fdeed8;--fair:#6a5a00;--fairbg:#f7f1cf;--dimbg:#eeeeec}
@media(prefers-color-scheme:dark){:root{--bg:#151517;--fg:#ececee;--sub:#9a9aa0;--line:#2c2c30;--card:#1d1d20;
--good:#6fdca0;--goodbg:#173524;--bad:#ff9b92;--badbg:#421b18;--gap:#ffc078;--gapbg:#3d2a10;--fair:#e9d96a;
--fairbg:#343012;--dimbg:#29292d}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 80px}h1{font-size:34px;margin:2px 0 6px;letter-spacing:-.02em}
h2{font-size:20px;margin:44px 0 12px;letter-spacing:-.01em}small{color:var(--sub);font-weight:400}
.eyebrow{margin:0;color:var(--sub);font-size:13px}.sub{color:var(--sub);margin:4px 0}
.badge{font-size:15px;font-weight:600;border-radius:99px;padding:4px 14px;vertical-align:6px;letter-spacing:0}
.good{color:var(--good);background:var(--goodbg)}.bad{color:var(--bad);background:var(--badbg)}
.gap{color:var(--gap);background:var(--gapbg)}.fair{color:var(--fair);background:var(--fairbg)}
.dim{color:var(--sub);background:var(--dimbg)}
.cards{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin-top:28px}
@media(max-width:640px){.cards{grid-template-columns:repeat(2,1fr)}}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px}
.card b{display:block;font-size:13px;font-weight:500;color:var(--sub)}.num{font-size:26px;font-weight:600}
.num i{font-style:normal;font-size:15px;font-weight:400;color:var(--sub)}
.bar{height:4px;border-radius:2px;background:var(--dimbg);margin-top:8px}
.bar div{height:4px;border-radius:2px;background:var(--good)}
.fault{background:var(--card);border:1px solid var(--line);border-left:3px solid var(--bad);border-radius:8px;
padding:10px 16px;margin-bottom:10px;overflow-wrap:anywhere}.fault p{margin:3px 0}
.tag{font-size:12px;font-weight:600;border-radius:6px;padding:2px 8px;white-space:nowrap}
code{font:13px ui-monospace,monospace;color:var(--sub)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}
th{text-align:left;font-weight:500;color:var(--sub);font-size:13px}
th,td{padding:7px 10px 7px 0;border-bottom:1px solid var(--line);vertical-align:top}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.what{overflow-wrap:anywhere;min-width:180px}
.f{display:inline-block;font:12px ui-monospace,monospace;border:1px solid var(--line);border-radius:5px;
padding:0 5px;margin:1px 0}
.no{color:var(--sub);text-decoration:line-through}
details{border-bottom:1px solid var(--line);padding:8px 0}summary{cursor:pointer}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px}dt{color:var(--sub)}
dd{margin:0;overflow-wrap:anywhere}
"""
