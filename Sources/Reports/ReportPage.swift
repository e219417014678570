/// The page of a report: curves and a table of runs, in one HTML file that needs nothing else.

import Primitives

public struct ReportPage: Sendable {
    /// At least one; they are numbered from 1 in this order.
    public let runs: [RecordedRun]

    public init(_ runs: [RecordedRun]) { self.runs = runs }

    /// What there is to show of these runs; a chart without a value is left out.
    public var charts: [LineChart] {
        [
            LineChart(
                title: "Evaluation loss by round", xTitle: "round", yTitle: "evaluation loss (\(unit))",
                lines: lines(begin: { $0.initialLoss }) { run, round in round.evaluationLoss },
                x: { Axis.counts($0) }, y: { Axis.linear($0) }),
            LineChart(
                title: "Evaluation loss by contribution bytes", xTitle: "contribution bytes so far, all clients (logarithmic)",
                yTitle: "evaluation loss (\(unit))", lines: linesByBytes, x: { Axis.bytes($0) }, y: { Axis.linear($0) }),
            LineChart(
                title: "Accuracy by round", xTitle: "round", yTitle: "evaluation accuracy",
                lines: lines(begin: { $0.initialAccuracy }) { run, round in round.evaluationAccuracy },
                x: { Axis.counts($0) }, y: { Axis.linear($0) }),
            LineChart(
                title: "Training loss by round", xTitle: "round", yTitle: "training loss (\(unit))",
                lines: lines { run, round in round.trainLoss }, x: { Axis.counts($0) }, y: { Axis.linear($0) }),
            LineChart(
                title: "Epsilon by round", xTitle: "round", yTitle: "epsilon spent",
                lines: lines { run, round in round.epsilon }, x: { Axis.counts($0) },
                y: { Axis.linear($0, includingZero: true) }),
        ].compactMap { $0 }
    }

    /// Of a loss.
    private var unit: String {
        runs.allSatisfy(\.classifies)
            ? "nats a text" : runs.contains(where: \.classifies) ? "nats a token or text" : "nats a token"
    }

    private func lines(
        begin: (RecordedRun) -> Double? = { _ in nil }, value: (RecordedRun, RecordedRun.Round) -> Double?
    ) -> [LineChart.Line] {
        runs.enumerated().map { index, run in
            let start = begin(run).map { first in
                LineChart.Point(x: 0, y: first, note: "\(run.label), before round 1: \(NumberText.loss(first))")
            }
            return LineChart.Line(
                run: index,
                points: (start.map { [$0] } ?? [])
                    + run.rounds.map { round in
                        let y = value(run, round)
                        return LineChart.Point(
                            x: Double(round.round), y: y, note: "\(run.label), round \(round.round): \(NumberText.loss(y))")
                    })
        }
    }

    /// The start has no place: its zero bytes have no logarithm.
    private var linesByBytes: [LineChart.Line] {
        runs.enumerated().map { index, run in
            var sent = 0.0
            let points = run.rounds.compactMap { round -> LineChart.Point? in
                // A run that tells no bytes has no place on their axis.
                guard let bytes = round.uplinkBytes, sent + Double(bytes) > 0 else { return nil }
                sent += Double(bytes)
                let text = NumberText.loss(round.evaluationLoss)
                return LineChart.Point(
                    x: sent, y: round.evaluationLoss,
                    note: "\(run.label), round \(round.round), \(NumberText.bytes(sent)): \(text)")
            }
            return LineChart.Line(run: index, points: points)
        }
    }

    public var html: String {
        let title = runs.count == 1 ? "Tributary: \(runs[0].label)" : "Tributary: \(runs.count) runs"
        let figures = charts.map { chart in
            "<figure>\n<figcaption>\(NumberText.escaped(chart.title))</figcaption>\n\(chart.svg)\n</figure>"
        }
        let unevaluated = runs.filter { run in !run.rounds.contains { $0.evaluationLoss != nil } }
        let note =
            unevaluated.isEmpty
            ? ""
            : "<p>Not evaluated: \(unevaluated.map { NumberText.escaped($0.label) }.joined(separator: ", ")). Nobody had evaluation data.</p>\n"
        return """
            <!DOCTYPE html>
            <html lang="en">
            <head>
            <meta charset="utf-8"/>
            <meta name="viewport" content="width=device-width, initial-scale=1"/>
            <title>\(NumberText.escaped(title))</title>
            <style>
            \(Self.style)
            </style>
            </head>
            <body>
            <h1>\(NumberText.escaped(title))</h1>
            <ol class="legend">
            \(runs.indices.map(legend).joined(separator: "\n"))
            </ol>
            \(note)<div class="charts">
            \(figures.joined(separator: "\n"))
            </div>
            \(RunTable.html(runs.map { RunSummary($0) }))
            <p class="small">Losses are \(unit). Bytes are of contributions as they travel, of all clients together; "times fewer" \
            counts the same values in bfloat16 (2 bytes) or float32 (4 bytes). One-time bytes set a client up and are not in the rounds' own. \
            Tributary \(NumberText.escaped(Version.current))</p>
            </body>
            </html>

            """
    }

    private func legend(_ index: Int) -> String {
        "<li><b>\(index + 1)</b> <svg class=\"sample\" viewBox=\"0 0 40 10\" aria-hidden=\"true\"><path \(LineChart.style(run: index)) d=\"M0 5H40\"/></svg> \(NumberText.escaped(runs[index].label))</li>"
    }

    /// Colours of Okabe and Ito, which readers with any colour vision tell apart, darker or lighter for the contrast.
    private static let style = """
        :root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #57606a; --grid: #d8dee4;
          --c0: #0067a5; --c1: #c24e00; --c2: #007a5a; --c3: #a8497f; --c4: #8a6a00; --c5: #2f87b8; --c6: #1b1f24; --c7: #7a52c7 }
        @media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e8ebee; --soft: #9aa4ae; --grid: #343b43;
          --c0: #56b4e9; --c1: #f5914a; --c2: #2fc79a; --c3: #e294bf; --c4: #f0e442; --c5: #8ecbf0; --c6: #e8ebee; --c7: #b79cf0 } }
        * { box-sizing: border-box }
        body { margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--page); color: var(--ink);
          font: 16px/1.45 system-ui, sans-serif }
        h1 { font-size: 1.35rem; overflow-wrap: anywhere }
        .legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none; overflow-wrap: anywhere }
        .sample { width: 40px; height: 10px; vertical-align: middle }
        .charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)) }
        figure { margin: 0; min-width: 0; max-width: 44rem }
        figcaption { font-weight: 600 }
        figure svg { width: 100%; height: auto; display: block }
        svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
        svg text.number { fill: var(--ink); font-weight: 600 }
        .grid { stroke: var(--grid); stroke-width: 1; fill: none }
        .leader { stroke: var(--soft); stroke-width: .5; fill: none }
        .line { stroke-width: 2; fill: none; stroke-linejoin: round }
        .line.color0 { stroke: var(--c0) } .line.color1 { stroke: var(--c1) } .line.color2 { stroke: var(--c2) }
        .line.color3 { stroke: var(--c3) } .line.color4 { stroke: var(--c4) } .line.color5 { stroke: var(--c5) }
        .line.color6 { stroke: var(--c6) } .line.color7 { stroke: var(--c7) }
        .dot.color0 { fill: var(--c0) } .dot.color1 { fill: var(--c1) } .dot.color2 { fill: var(--c2) }
        .dot.color3 { fill: var(--c3) } .dot.color4 { fill: var(--c4) } .dot.color5 { fill: var(--c5) }
        .dot.color6 { fill: var(--c6) } .dot.color7 { fill: var(--c7) }
        .scroll { overflow-x: auto; margin-top: 1rem }
        table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
        th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top }
        td.right, th.right { text-align: right; white-space: nowrap }
        .small { color: var(--soft); font-size: .85rem }
        """
}
