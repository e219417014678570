/// Reading a run's folder: what is there, what is not, and which line is damaged.

import Primitives
import Reports
import Testing

@Suite struct RecordedRunTests {
    private func failure(_ lines: [String], run: String = SampleRuns.run()) -> Failure? {
        do {
            _ = try SampleRuns.make("x", run: run, lines: lines)
            return nil
        } catch {
            return error as? Failure
        }
    }

    @Test func aRunIsReadWithItsPlanAndItsRounds() throws {
        let privacy = "{\"level\":\"client\",\"epsilon_target\":3,\"epsilon_spent\":2.5,\"delta\":1e-5,\"guarantee\":\"by this\"}"
        let run = try SampleRuns.make(
            "a", run: SampleRuns.run(compress: "compeft:0.1", errorFeedback: true, privacy: privacy),
            lines: [
                SampleRuns.line(1, loss: "null", more: ",\"epsilon\":1.25"), SampleRuns.line(3), "\n",
            ])
        #expect(run.strategy == "fedit" && run.compress == "compeft:0.1" && run.errorFeedback && run.isFinished)
        #expect(run.initialLoss == 4 && run.plannedRounds == 3 && run.seed == 0)
        #expect(run.privacy?.epsilon == 2.5 && run.privacy?.delta == 1e-5 && run.privacy?.guarantee == "by this")
        #expect(run.rounds.map(\.round) == [1, 3] && run.rounds.map(\.evaluationLoss) == [nil, 2.5])
        #expect(run.rounds.map(\.epsilon) == [1.25, nil] && run.rounds[0].participants == 2)
    }

    @Test func theBudgetStandsForWhatWasSpentWhereOnlyClientsKnowIt() throws {
        let privacy = "{\"level\":\"example\",\"epsilon_target\":3,\"delta\":1e-5,\"guarantee\":\"by each client\"}"
        let run = try SampleRuns.make("a", run: SampleRuns.run(privacy: privacy), lines: [SampleRuns.line(1)])
        #expect(run.privacy?.level == "example" && run.privacy?.epsilon == 3)
    }

    @Test func aDamagedLineIsNamed() throws {
        let good = SampleRuns.line(1)
        for (line, reason) in [
            ("{\"round\":2,", "the text ends"), ("[]\n", "it is an array"), (SampleRuns.line(1), "not after"),
            (SampleRuns.line(2, loss: "\"low\""), "eval_loss is a string"), (SampleRuns.line(2, uplink: -1), "uplink_bytes"),
            ("{\"round\":1e99}\n", "round is no whole number"), ("\u{1}\n", "expected"),
        ] {
            let found = failure([good, line])
            let failure = try #require(found, "\(line)")
            #expect(failure.status == .badData)
            #expect(failure.message.hasPrefix("runs/x/metrics.jsonl line 2 is damaged: "), "\(failure)")
            #expect(failure.message.contains(reason), "\(failure)")
            #expect(!failure.message.contains("\n"))
        }
    }

    @Test func everyTruncationIsRefusedOrReadAsFewerRounds() throws {
        let text = Array((SampleRuns.line(1) + SampleRuns.line(2)).utf8)
        let run = Array(SampleRuns.run().utf8)
        for length in text.indices {
            do throws(Failure) {
                let read = try RecordedRun(label: "x", folder: "x", run: run, metrics: Array(text[..<length]))
                #expect(read.rounds.count <= 2)
            } catch {
                #expect(error.status == .badData)
            }
        }
        for length in run.indices.dropLast() {
            #expect(throws: Failure.self) {
                try RecordedRun(label: "x", folder: "x", run: Array(run[..<length]), metrics: text)
            }
        }
    }

    @Test func aRunWithoutARoundOrWithoutAPlanIsRefused() throws {
        #expect(failure([])?.message.contains("metrics.jsonl has no round yet") == true)
        #expect(failure(["\n", " \n"])?.message.contains("has no round yet") == true)
        #expect(failure([SampleRuns.line(1)], run: "{}")?.message.contains("run.json has no plan") == true)
        #expect(failure([SampleRuns.line(1)], run: "{")?.message.contains("run.json is damaged at byte 1") == true)
    }

    @Test func aSummaryWeighsRatiosByBytes() throws {
        let run = try SampleRuns.make(
            "a",
            lines: [
                SampleRuns.line(1, uplink: 1000, ratio: "4"), SampleRuns.line(2, loss: "null", uplink: 3000, ratio: "8"),
                SampleRuns.line(3, loss: "null", uplink: 0, ratio: "null"),
            ])
        let summary = RunSummary(run)
        #expect(summary.finalLoss == 2.5 && summary.finalLossRound == 1)
        #expect(summary.uplinkRatios.bfloat16 == 7 && summary.downlinkRatios.bfloat16 == nil)
        #expect(summary.uplinkBytesPerContribution == 4000.0 / 6 && summary.uplinkBytesPerRound == 4000.0 / 3)
        #expect(summary.oneTimeBytes == 90 && summary.seconds == 4.5)
    }

    @Test func whoWasDrawnInSecretHasNoBytesOfHisOwn() throws {
        let line = SampleRuns.line(1).replacing("[\"a\",\"b\"]", with: "null")
        let summary = RunSummary(try SampleRuns.make("a", lines: [line]))
        #expect(summary.uplinkBytesPerContribution == nil && summary.uplinkBytesPerRound == 1000)
    }

    /// As the record of a run under client-level privacy has it.
    @Test func bytesAndTimesThatAreNotToldAreMissingAndNotZero() throws {
        let line =
            #"{"round":1,"participants":null,"train_loss":null,"eval_loss":2.5,"uplink_bytes":null,"downlink_bytes":null,"one_time_bytes":null,"control_bytes":null,"seconds":null,"epsilon":1.5}"#
        let run = try SampleRuns.make("a", lines: [line])
        let summary = RunSummary(run)
        #expect(summary.uplinkBytesPerRound == nil && summary.oneTimeBytes == nil && summary.seconds == nil)
        #expect(summary.finalLoss == 2.5 && run.rounds[0].epsilon == 1.5)
        let told = try SampleRuns.make("b", lines: [SampleRuns.line(1)])
        #expect(
            ReportPage([run, told]).html.contains("</html>") && RunTable.markdown([summary, RunSummary(told)]).contains("| a |"))
        #expect(ReportPage([run]).html.contains("</html>"))
    }
}
