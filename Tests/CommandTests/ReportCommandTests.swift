/// `tributary report`: what it writes from a simulation's folder, and what it refuses.

import Primitives
import TestSupport
import Testing

@Suite struct ReportCommandTests {
    @Test func runsOfASimulationAreComparedInOnePage() throws {
        let place = try Workplace()
        for codec in ["bf16", "compeft:0.2"] {
            let finished = try place.run(
                place.simulate(codec, ["--eval-data", place.evaluation, "--compress", codec, "--strategy", "ffa-lora"]))
            #expect(finished.status == 0, "\(finished.errors)")
        }
        let page = place.file("page.html")
        let runs = [place.file("bf16"), place.file("compeft:0.2") + "/"]
        let result = try place.json(["report"] + runs + ["--output", page])
        #expect(result["output"]?.text == page)
        let rows = try #require(result["runs"]?.elements)
        #expect(rows.map { $0["run"]?.text } == ["bf16", "compeft:0.2"])
        #expect(try #require(rows[1]["fewer_uplink_bytes_than_bf16"]?.double) > 1)
        #expect(try #require(rows[0]["eval_loss"]?.double) > 0)
        #expect(try place.text(page).contains("<svg viewBox"))
        let table = try place.run(["report", "--markdown", "--label", "one", "--label", "two", "--output", page] + runs)
        #expect(table.status == 0 && table.output.contains("| one | ffa-lora | bf16 |"), "\(table.errors)")
        // Damage is found in its line.
        try place.write(place.file("bf16") + "/metrics.jsonl", "{\n")
        let damaged = try place.run(["report"] + runs + ["--output", page])
        #expect(damaged.status == 65 && damaged.errors.contains("metrics.jsonl line 1 is damaged"), "\(damaged.errors)")
    }

    @Test(
        arguments: [
            (["nowhere"], 66, "nowhere is no folder"), (["."], 66, "has no metrics.jsonl"), ([], 64, "run-folder"),
            ([".", "--label", "a", "--label", "b"], 64, "2 labels for 1 run"),
            ([".", "--json", "--markdown"], 64, "leave one out"),
            ([".", "--pool-seeds"], 64, "--markdown"),
        ] as [([String], Int32, String)])
    func badInputIsOneSentence(_ arguments: [String], _ status: Int32, _ words: String) throws {
        let folder = TemporaryFolder()
        let finished = try Finished.run("tributary", ["report"] + arguments, in: folder)
        #expect(finished.status == status, "\(finished.errors)")
        #expect(finished.errors.contains(words) && finished.errors.split(separator: "\n").count == 1, "\(finished.errors)")
    }
}
