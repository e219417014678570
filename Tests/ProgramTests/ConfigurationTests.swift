/// What a person gets wrong before a run begins: one sentence, and a documented exit code.

import FoundationEssentials
import Plan
import PlanOptions
import Primitives
import TestSupport
import Testing

@Suite struct ConfigurationTests {
    let folder = TemporaryFolder()

    private func start(_ yaml: String, _ flags: [String] = []) throws -> Finished {
        try Data(yaml.utf8).write(to: URL(filePath: folder.file("federation.yaml")))
        return try Finished.run(
            "tributary-coordinator",
            ["start", "--config", folder.file("federation.yaml"), "--output", folder.file("run")] + flags,
            in: folder)
    }

    @Test(arguments: [
        ("rounds: 3\ncliens_per_round: 3\n", ":2: unknown key cliens_per_round: did you mean clients_per_round?"),
        ("clients-per-round: 3\n", ":1: unknown key clients-per-round: did you mean clients_per_round?"),
        ("# nothing\n\nlearningrate: 1\n", ":3: unknown key learningrate: did you mean learning_rate?"),
        ("rounds: many\n", ":1: rounds is many: it is a whole number"),
        ("rounds: 2.5\n", ":1: rounds is 2.5: it is a whole number"),
        ("seed: -1\n", ":1: seed is -1: it is a whole number from 0 up"),
        ("rounds:\n", ":1: rounds has no value: it is a whole number; leave the line out for the default"),
        ("rounds: [3]\n", ":1: rounds is a list: it is a whole number"),
        ("ranks: [4, x]\n", ":1: ranks is [4, x]: it is a list, each a whole number"),
        ("ranks: []\n", ":1: ranks is []: it is a list, each a whole number"),
        ("rank_stabilized: maybe\n", ":1: rank_stabilized is maybe: it is true or false"),
        ("strategy: fedavg\n", ":1: strategy is fedavg: it is one of fedit, ffa-lora, flora, fed-sb"),
        ("rounds: 3\nseed: 1\nrounds: 4\n", ":3: key rounds stands there a second time: keep one of them"),
        ("rounds: {3\n", ":2: this is not YAML: did not find expected ',' or '}'"),
        ("just words\n", ":1: this is not a list of keys: write lines such as rounds: 20"),
    ])
    func aWrongFileIsNamedWithItsLineAndWhatIsPossible(yaml: String, sentence: String) throws {
        let finished = try start(yaml)
        #expect(finished.status == ExitStatus.badConfiguration.rawValue)
        #expect(finished.sentence == folder.file("federation.yaml") + sentence)
    }

    @Test func aFileIsCheckedEvenWhereAFlagWins() throws {
        #expect(try start("rounds: many\n", ["--rounds", "3"]).status == ExitStatus.badConfiguration.rawValue)
    }

    @Test func aFlagWinsOverTheFile() throws {
        try TinyBase.write(to: folder.file("model"))
        let finished = try start("model: \(folder.file("model"))\nrounds: 3\nranks: [4]\n", ["--rounds", "0"])
        #expect(finished.status == ExitStatus.usage.rawValue)
        #expect(finished.sentence == "rounds is 0: a run has at least 1 round")
    }

    @Test func missingInputsAreNamed() throws {
        let noConfiguration = try Finished.run(
            "tributary-coordinator", ["start", "--config", folder.file("none.yaml")], in: folder)
        #expect(noConfiguration.status == ExitStatus.missingInput.rawValue)
        #expect(noConfiguration.sentence.hasPrefix("the configuration \(folder.file("none.yaml")) cannot be read"))

        let noModel = try start("rounds: 3\n", ["--model", folder.file("none")])
        #expect(noModel.status == ExitStatus.missingInput.rawValue)
        #expect(noModel.sentence.contains(folder.file("none")))

        let unsaid = try start("rounds: 3\n")
        #expect(unsaid.status == ExitStatus.usage.rawValue)
        #expect(unsaid.sentence.hasPrefix("no base model is given"))

        for command in ["status", "export", "forget"] {
            let more = command == "export" ? ["--output", folder.file("out")] : command == "forget" ? ["a"] : []
            let finished = try Finished.run(
                "tributary-coordinator", [command, "--state", folder.file("none.sqlite")] + more, in: folder)
            #expect(finished.status == ExitStatus.missingInput.rawValue)
            #expect(finished.sentence == "there is no state file \(folder.file("none.sqlite")): name a run's file with --state")
        }
    }

    @Test func combinationsThatCannotWorkAreRefusedBeforeAnythingStarts() throws {
        try TinyBase.write(to: folder.file("model"))
        for (flags, sentence) in [
            (["--ranks", "0"], "rank 0"), (["--ranks", "4,8"], "takes one rank"), (["--ranks", "65"], "rank 65"),
            (["--strategy", "fed-sb", "--alpha", "8", "--ranks", "4"], "alpha is not used by fed-sb"),
            (["--ranks", "4", "--target-modules", "q_proj,lm_head"], "target module lm_head"),
            (["--rank-cap", "8"], "rank-cap belongs to flora and means nothing to fedit"),
            (["--strategy", "flora", "--start", "xs"], "start xs means nothing to flora"),
            (["--ranks", "4", "--quorum", "3", "--clients-per-round", "2", "--min-clients", "2"], "quorum 3 is above"),
            (["--ranks", "4", "--listen", "http://here:1"], "scheme http is unknown"),
            (["--ranks", "4", "--sequence-length", "129"], "the model has 128 positions"),
        ] {
            let finished = try start("model: \(folder.file("model"))\n", flags)
            #expect(finished.status == ExitStatus.usage.rawValue, "\(flags): \(finished.errors)")
            #expect(finished.sentence.contains(sentence), "\(flags): \(finished.errors)")
        }
    }

    @Test func everyKeyIsAFlagAndIsInTheSampleAndInTheDocumentation() throws {
        let help = try Finished.run("tributary-coordinator", ["start", "--help"], in: folder).output
        let sample = try String(
            decoding: Data(contentsOf: URL(filePath: Golden.repository + "/deploy/federation.yaml")), as: UTF8.self)
        let manual = try String(
            decoding: Data(contentsOf: URL(filePath: Golden.repository + "/docs/configuration.md")), as: UTF8.self)
        let keys = ["model", "listen", "state", "output", "min_clients"] + PlanOptions.keys.map(\.name)
        for key in keys {
            let flag = "--" + String(key.map { $0 == "_" ? "-" : $0 })
            #expect(help.contains("  \(flag) ") || help.contains("  \(flag)/"), "\(flag) is missing in the help")
            #expect(sample.contains("\n\(key):") || sample.contains("\n#\(key):"), "\(key) is missing in the sample")
            #expect(manual.contains("\n| `\(key)` |"), "\(key) is missing in docs/configuration.md")
        }
        // Every property of the options has a row in the table.
        let properties = Mirror(reflecting: PlanOptions()).children.compactMap(\.label)
        #expect(properties.count == PlanOptions.keys.count)
    }

    /// Where two plans differ, people read keys that they can type.
    @Test func differencesOfPlansAreToldByTheirKeys() throws {
        var plan = FederationPlan()
        plan.labels = (0..<5000).map { "label number \($0)" }
        (plan.alpha, plan.epsilon, plan.noiseMultiplier, plan.clipQuantile, plan.clipCountNoise) = (1, 1, 1, 0.5, 1)
        plan.initialAdapterDigest = Digest(of: [1])
        let flags = Set(PlanOptions.keys.map { String($0.flag.dropFirst(2)) } + ["min-clients"])
        for member in try JSONValue(parsing: PlanCoding.encode(plan)).members ?? [] {
            let key = PlanDifference.key(ofProperty: member.key)
            #expect(flags.contains(key) || key.hasPrefix("model ("), "\(member.key): \(key)")
        }
        var other = FederationPlan()
        other.deadlineSeconds = 5
        let text = PlanDifference.describe(plan, other)
        #expect(text.contains("alpha 1 there, unset here") && text.contains("deadline 3600 there, 5 here"))
        #expect(text.utf8.count < 1000 && text.hasSuffix(" more"), "\(text)")
    }

    @Test func theSampleStartsARun() throws {
        try TinyBase.write(to: folder.file("model"))
        let process = try ProgramProcess(
            "tributary-coordinator",
            [
                "start", "--config", Golden.repository + "/deploy/federation.yaml", "--model", folder.file("model"), "--listen",
                "tcp://127.0.0.1:0", "--state", folder.file("state/run.sqlite"), "--output", folder.file("output"),
                "--sequence-length",
                "128", "--json",
            ], in: folder, name: "coordinator")
        let listening = try process.event("listening")
        #expect(listening["rounds"]?.int == 20 && listening["strategy"]?.text == "fedit")
        try process.event("waiting") { $0["reason"]?.text == "clients: 0 of 3 have joined" }
        let plan = try JSONValue(parsing: Data(contentsOf: URL(filePath: folder.file("output/run.json"))))["plan"]
        #expect(plan?["quorum"]?.int == 2 && plan?["sequenceLength"]?.int == 128)
    }

    @Test func theNearestNameIsTheOneThatWasMeant() {
        let known = PlanOptions.keys.map(\.name)
        #expect(NearestName.of("learnign_rate", among: known) == "learning_rate")
        #expect(NearestName.of("rank", among: known) == "ranks")
        #expect(NearestName.of("zzzzzzzzzzzzzzz", among: known) == nil)
        #expect(NearestName.editDistance("abcd", "acbd") == 1)
        #expect(NearestName.editDistance("", "abc") == 3)
        #expect(NearestName.editDistance("kitten", "sitting") == 3)
    }
}
