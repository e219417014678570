/// The page: well formed whatever the runs are called, one line a run, gaps where values are missing.

import Primitives
import Reports
import Testing

@Suite struct ReportPageTests {
    private func runs(_ count: Int) throws -> [RecordedRun] {
        try (0..<count).map { index in
            try SampleRuns.make(
                "run \(index)", lines: (1...4).map { SampleRuns.line($0, loss: "\(4.0 - Double($0 * (index + 1)) / 10)") })
        }
    }

    @Test func theCheckOfMarkupSeesWhatIsWrong() {
        #expect(Markup.problem("<!DOCTYPE html><p class=\"a\">x &amp; y<br/></p>") == nil)
        for wrong in ["<p>", "</p>", "<p><b></p></b>", "<p a=1></p>", "a & b", "<p a=\"&\"></p>", "<p", "<p a=\"<\"></p>"] {
            #expect(Markup.problem(wrong) != nil, "\(wrong)")
        }
    }

    @Test(arguments: [1, 2, 9, 30]) func thePageAndItsDrawingsAreWellFormed(_ count: Int) throws {
        let page = ReportPage(try runs(count))
        #expect(Markup.problem(page.html) == nil)
        #expect(
            page.charts.map(\.title) == [
                "Evaluation loss by round", "Evaluation loss by contribution bytes", "Training loss by round",
            ])
        for chart in page.charts {
            #expect(Markup.problem(chart.svg) == nil)
            #expect(chart.lines.count == count)
            #expect(chart.svg.ranges(of: "class=\"line ").count == count)
            #expect(chart.svg.ranges(of: "class=\"number\"").count == count)
        }
        for outside in ["<script", "src=", "href=", "@import", "url("] { #expect(!page.html.contains(outside)) }
    }

    @Test func namesCannotBreakThePage() throws {
        let name = "<script>alert('1')</script> & \"x\" \u{1}\u{FFFF} a|b"
        let hostile = SampleRuns.run(strategy: "</td>&", compress: "\\\"<")
        let run = try SampleRuns.make(name, run: hostile, lines: [SampleRuns.line(1)])
        let page = ReportPage([run, try SampleRuns.make("b", lines: [SampleRuns.line(1)])]).html
        #expect(Markup.problem(page) == nil)
        #expect(!page.contains("<script") && !page.contains("\u{1}") && page.contains("&lt;script&gt;alert(&#39;1&#39;)"))
        let table = RunTable.markdown([RunSummary(run)])
        #expect(table.split(separator: "\n").count == 3)
        #expect(table.split(separator: "\n").last?.contains("a\\|b") == true)
    }

    @Test func runsDifferInMoreThanColour() throws {
        let svg = try #require(ReportPage(try runs(4)).charts.first).svg
        let lines = svg.split(separator: "\n").filter { $0.contains("class=\"line ") }
        let styles = lines.compactMap { $0.split(separator: " d=").first.map(String.init) }
        #expect(Set(styles).count == 4)
        #expect(styles.filter { $0.contains("stroke-dasharray") }.count == 3)
    }

    @Test func aMissingValueIsAGapAndALonePointIsMarked() throws {
        let run = try SampleRuns.make(
            "a", run: SampleRuns.run(initial: "null"),
            lines: [
                SampleRuns.line(1), SampleRuns.line(2), SampleRuns.line(3, loss: "null"), SampleRuns.line(4),
            ])
        let svg = try #require(ReportPage([run]).charts.first).svg
        let path = try #require(svg.split(separator: "\n").first { $0.contains("class=\"line ") })
        #expect(path.count { $0 == "M" } == 2 && path.count { $0 == "L" } == 1)
        #expect(svg.ranges(of: "<circle").count == 3)
    }

    @Test func whatNobodyMeasuredHasNoChart() throws {
        let unevaluated = try SampleRuns.make(
            "quiet", run: SampleRuns.run(initial: "null"), lines: [SampleRuns.line(1, loss: "null", trainLoss: "null")])
        let page = ReportPage([unevaluated])
        #expect(page.charts.isEmpty)
        #expect(Markup.problem(page.html) == nil && page.html.contains("Not evaluated: quiet"))
        let spending = try SampleRuns.make(
            "private", lines: [SampleRuns.line(1, more: ",\"epsilon\":0.5"), SampleRuns.line(2, more: ",\"epsilon\":0.75")])
        let both = ReportPage([unevaluated, spending])
        #expect(both.charts.map(\.title).last == "Epsilon by round")
        // Each keeps its number also where another has no line.
        #expect(both.charts.allSatisfy { $0.lines.map(\.run) == [1] && $0.svg.contains(">2</text>") })
    }

    @Test func theStartIsInTheCurveByRoundsAndNotInThatByBytes() throws {
        let charts = ReportPage(try runs(1)).charts
        #expect(charts[0].lines[0].points.map(\.x) == [0, 1, 2, 3, 4])
        #expect(charts[1].lines[0].points.map(\.x) == [1000, 2000, 3000, 4000])
    }

    @Test func compressedRunsAreComparedWithTheOneInBFloat16() throws {
        func summary(_ compress: String, loss: String, uplink: Int, seed: Int = 0) throws -> RunSummary {
            RunSummary(
                try SampleRuns.make(
                    compress, run: SampleRuns.run(compress: compress, seed: seed),
                    lines: [SampleRuns.line(1, loss: loss, uplink: uplink)]))
        }
        let rows = [
            try summary("bf16", loss: "2", uplink: 8000), try summary("compeft:0.1", loss: "2.1", uplink: 500),
            try summary("compeft:0.1", loss: "2.3", uplink: 500, seed: 1),
        ]
        let lines = RunTable.markdown(rows).split(separator: "\n")
        #expect(lines[0].contains("times fewer than the bf16 run's") && !lines[0].contains("epsilon"))
        #expect(lines[3].hasSuffix("| 2.1000 | 105.00 | 250 | 16.0 |"))
        // Another seed's run is no reference.
        #expect(lines[4].hasSuffix("| 2.3000 | - | 250 | - |"))
        let json = rows.json().elements
        #expect(json?[1]["eval_loss_of_bf16"]?.double == 1.05 && json?[1]["fewer_uplink_bytes_than_bf16"]?.double == 16)
    }

    @Test func runsThatDifferInTheirSeedsArePooled() throws {
        let rows = try [(1, "2"), (2, "3"), (3, "2.5")].map { seed, loss in
            RunSummary(try SampleRuns.make("s\(seed)", run: SampleRuns.run(seed: seed), lines: [SampleRuns.line(1, loss: loss)]))
        }
        let other = RunSummary(
            try SampleRuns.make("o", run: SampleRuns.run(strategy: "flora"), lines: [SampleRuns.line(1, loss: "1")]))
        let lines = RunTable.markdown([rows[0], other, rows[1], rows[2]], poolingSeeds: true).split(separator: "\n")
        #expect(lines.count == 4)
        #expect(lines[2].contains("| 2.5000 | 2.0000 to 3.0000 | 3 |"))
        #expect(lines[3].contains("| 1.0000 | 1.0000 to 1.0000 | 1 |"))
    }
}

@Suite struct ClassifierReportTests {
    private func runs() throws -> [RecordedRun] {
        try (0..<2).map { seed in
            let lines = (1...3).map { round in
                SampleRuns.line(round, more: ",\"eval_accuracy\":0.\(round)\(seed),\"eval_macro_f1\":0.\(round)1")
            }
            let run = SampleRuns.run(seed: seed).replacingOnce("\"strategy\":", "\"task\":\"classify\",\"strategy\":")
            return try SampleRuns.make("r\(seed)", run: run, lines: lines)
        }
    }

    @Test func accuracyHasACurveAndColumnsWhereTextsAreClassified() throws {
        let runs = try runs()
        #expect(runs[1].rounds.map(\.evaluationAccuracy) == [0.11, 0.21, 0.31])
        let page = ReportPage(runs)
        #expect(page.charts.contains { $0.title == "Accuracy by round" })
        #expect(page.html.contains("Losses are nats a text.") && page.html.contains("31.00 %"))
        let table = RunTable.markdown(runs.map { RunSummary($0) }, poolingSeeds: true)
        #expect(table.contains("accuracy, mean") && table.contains("30.50 %") && table.contains("31.00 %"))
        let json = runs.map { RunSummary($0) }.json()
        #expect(json.elements?.first?["eval_accuracy"]?.double == 0.3)
        // Runs that classify nothing have neither.
        let plain = ReportPage([try SampleRuns.make("plain", lines: [SampleRuns.line(1)])])
        #expect(!plain.html.contains("accuracy") && !plain.charts.contains { $0.title == "Accuracy by round" })
    }
}

extension String {
    fileprivate func replacingOnce(_ part: String, _ other: String) -> String {
        guard let start = indices.first(where: { self[$0...].hasPrefix(part) }) else { return self }
        return String(self[..<start]) + other + self[start...].dropFirst(part.count)
    }
}
