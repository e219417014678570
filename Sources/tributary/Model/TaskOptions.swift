/// What a model is trained or evaluated for, and where its data has texts and labels.

import Adapters
import ArgumentParser
import Checkpoints
import Datasets
import Model
import Plan
import PlanOptions
import Primitives

struct TaskOptions: ParsableArguments {
    @Option(name: .long, help: "causal (predict tokens) or classify (tell a text's label).") var task = "causal"
    @Option(
        name: .long,
        help: ArgumentHelp(
            "classify: all labels, or a file with one a line; the data's own by default.", valueName: "label,...|file"))
    var labels: String?
    @Option(name: .long, help: ArgumentHelp("The field or column of the text, if it is not called text.", valueName: "field"))
    var textField: String?
    @Option(name: .long, help: ArgumentHelp("classify: the field or column of the label.", valueName: "field"))
    var labelField = "label"

    /// The labels that were named; nil if none were.
    func namedLabels() throws(Failure) -> [String]? {
        guard let labels else { return nil }
        return try PlanOptions.readLabels(labels.split(separator: ",").map(String.init))
    }

    /// The part of a plan that is about the task, checked against the model.
    ///
    /// - Parameter labels: of `classify`, where none were named
    func plan(
        for configuration: ModelConfiguration, seed: UInt64 = 0, labels: () throws(Failure) -> [String]
    ) throws(Failure) -> FederationPlan {
        var plan = FederationPlan()
        plan.seed = seed
        plan.task = try choice("--task", task, TaskName.self)
        if plan.task == .causal { try require(self.labels == nil, "--labels means nothing without --task classify") }
        // Before the labels are looked for: a model that is not for the task has none.
        var fitting = plan
        fitting.settleTask(for: configuration)
        try fitting.validateTask(for: configuration)
        if plan.task == .classify {
            if let named = try namedLabels() { plan.labels = named } else { plan.labels = try labels() }
        }
        plan.settleTask(for: configuration)
        try plan.validateLabels()
        return plan
    }

    func learningTask(_ plan: FederationPlan) -> LearningTask {
        plan.task == .causal ? .causal : .classify(LabelSet(plan.labels), field: labelField)
    }
}

extension FederationPlan {
    var modelTask: ModelTask { task == .causal ? .causal : .classify(labelCount: labels.count) }
}
