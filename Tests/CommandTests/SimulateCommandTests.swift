/// A simulation on the command line: what it writes, that it goes on where it stopped, and what it refuses.

import FoundationEssentials
import Glibc
import Primitives
import TestSupport
import Testing

@Suite(.serialized) struct SimulateCommandTests {
    let place: Workplace

    init() throws { place = try Workplace() }

    @Test func aRunLeavesAdapterMetricsAndPlan() throws {
        let finished = try place.run(place.simulate("run", ["--eval-data", place.evaluation, "--exact-match", "3", "--json"]))
        #expect(finished.status == 0, "\(finished.errors)")
        #expect(finished.errors.isEmpty)
        let lines = try place.text(place.file("run/metrics.jsonl")).split(separator: "\n")
        #expect(lines.count == 2)
        for line in lines {
            let metrics = try JSONValue(parsing: line.utf8)
            for key in [
                "round", "participants", "train_loss", "eval_loss", "eval_exact_match", "uplink_bytes", "downlink_bytes",
                "one_time_bytes", "control_bytes", "seconds", "strategy",
            ] {
                #expect(metrics[key].map { !$0.isNull } == true, "\(key) is missing")
            }
        }
        #expect(finished.output.hasPrefix(lines.map { $0 + "\n" }.joined()))
        let run = try JSONValue(parsing: try place.bytes(place.file("run/run.json")))
        #expect(run.members?.isEmpty == false)
        // The last round's loss is that of the adapter that was written.
        let last = try #require(try JSONValue(parsing: lines[1].utf8)["eval_loss"]?.double)
        let measured = try place.json(
            ["model", "eval", "--model", place.model, "--adapter", place.file("run/adapter"), "--data", place.evaluation])
        #expect(abs(last - (try #require(measured["loss"]?.double))) < 1e-6)
    }

    @Test(arguments: ["fedit", "flora", "fed-sb"]) func afterAKillTheSameCommandGivesTheSameBits(strategy: String) throws {
        let flags = ["--strategy", strategy, "--rounds", "3", "--local-steps", "12"]
        #expect(try place.run(place.simulate("whole", flags)).status == 0)
        let wanted = try place.bytes(place.file("whole/adapter/adapter_model.safetensors"))
        for (name, signal) in [("killed", SIGKILL), ("interrupted", SIGINT)] {
            let process = try place.start(place.simulate(name, flags + ["--json"]))
            try wait { process.output.contains("\"round\":1") }
            process.send(signal)
            let status = try process.exitStatus()
            // A fast machine may be through before the signal arrives.
            #expect(status == 0 || status == (signal == SIGKILL ? 1000 + SIGKILL : ExitStatus.interrupted.rawValue))
            if status == ExitStatus.interrupted.rawValue {
                #expect(process.errors.contains("the same command goes on from there"))
            }
            #expect(try place.run(place.simulate(name, flags)).status == 0)
            #expect(try place.bytes(place.file("\(name)/adapter/adapter_model.safetensors")) == wanted, "\(name)")
        }
    }

    @Test func itSaysHowManyExamplesTheLengthCosts() throws {
        try place.write(
            place.data,
            TinyBase.records(9) + #"{"prompt": "1+1=", "completion": "two, and more words than anybody needs"}"# + "\n")
        let finished = try place.run(place.simulate("run", ["--rounds", "1"]))
        #expect(finished.status == 0)
        #expect(finished.errors == "1 example was cut to 24 tokens\n")
    }

    @Test func partitionsComeWithTheCommandsThatRunThem() throws {
        let parts = place.file("parts")
        let finished = try place.run(place.simulate("run", ["--rounds", "1", "--write-partitions", parts, "--seed", "5"]))
        #expect(finished.status == 0)
        let commands = try place.text(parts + "/commands.txt")
        #expect(commands.contains("coordinator start") && commands.contains("--seed 5") && commands.contains("--rounds 1"))
        #expect(commands.split(separator: "\n").count == 4)
        #expect(place.exists(parts + "/client-002.jsonl"))
    }

    @Test func whatMeansNothingIsRefused() throws {
        let refusals: [([String], String)] = [
            (["--quorum", "2"], "--quorum means nothing in a simulation"),
            (["--deadline", "9"], "--deadline means nothing in a simulation"),
            (["--rank-cap", "8"], "rank-cap belongs to flora and means nothing to fedit"),
            (["--start", "xs"], "start xs means nothing to fedit: possible are zero, loftq"),
            (["--start", "loftq"], "is not quantized and quantize is stored: add --quantize nf4"),
            (["--start", "loftq", "--strategy", "flora", "--quantize", "nf4"], "start loftq is not possible with flora"),
            (["--ranks", "0"], "rank 0 is not possible"),
            (["--ranks", "5000"], "rank 5000 is above"),
            (["--ranks", "2,4"], "takes one rank"),
            (["--ranks", "x"], "--ranks"),
            (["--strategy", "fedavg"], "fed-sb"),
            (["--exact-match", "-1"], "--option=-1"),
            (["--clients", "0"], "at least one client"),
            (["--clients", "500"], "too few for 500 clients"),
            (["--sequence-length", "4096"], "use at most"),
            (["--rounds", "9223372036854775807"], "at most"),
            (["--batch-size", "9223372036854775807"], "at most"),
            (["--chat-template", "none-such"], "none-such"),
            (["--exact-match", "4"], "--exact-match means nothing without --eval-data"),
            (["--exact-match-marker", "##"], "exact-match-marker means nothing without --exact-match"),
            (["--output", ""], "--output has an empty name"),
        ]
        for (flags, sentence) in refusals {
            let finished = try place.run(place.simulate("run", flags))
            #expect(finished.status == ExitStatus.usage.rawValue, "\(flags): \(finished.errors)")
            #expect(finished.sentence.contains(sentence), "\(flags): \(finished.errors)")
            #expect(finished.output.isEmpty && !place.exists(place.file("run")), "\(flags) left something")
        }
    }

    @Test func aFolderBelongsToItsDataAndPlan() throws {
        #expect(try place.run(place.simulate("run")).status == 0)
        let plan = try place.run(place.simulate("run", ["--seed", "2"]))
        #expect(plan.status == ExitStatus.cannotCreate.rawValue && plan.sentence.contains("other data: --seed differs"))
        let evaluated = try place.run(place.simulate("run", ["--eval-data", place.evaluation]))
        #expect(evaluated.sentence.contains("other data: --eval-data differs"))
        let rate = try place.run(place.simulate("run", ["--learning-rate", "0.5"]))
        #expect(rate.status == ExitStatus.cannotCreate.rawValue)
        #expect(rate.sentence.contains("learning-rate 0.0002 there, 0.5 here"))
        try place.write(place.data, TinyBase.records(Workplace.records, seed: 9))
        let data = try place.run(place.simulate("run"))
        #expect(data.status == ExitStatus.cannotCreate.rawValue)
        #expect(data.sentence.contains("holds a run on other data: --data differs"))
    }

    private func wait(_ condition: () -> Bool) throws {
        let end = ContinuousClock.now + .seconds(30)
        while !condition() {
            guard ContinuousClock.now < end else { throw ProgramFailure(description: "the first round never ended") }
            usleep(1000)
        }
    }
}
