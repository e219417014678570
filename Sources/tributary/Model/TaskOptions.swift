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
            "classify: all labels, or a file with one a line or a JSON list; the adapter's or the data's own by default.",
            valueName: "label,...|file"), transform: PlanOptions.words)
    var labels: [String]?
    @Option(name: .long, help: ArgumentHelp("The field or column of the text, if it is not called text.", valueName: "field"))
    var textField: String?
    @Option(
        name: .customLong("label-field"),
        help: ArgumentHelp("classify: the field or column of the label (default: label).", valueName: "field"))
    var namedLabelField: String?

    /// That holds a record's label.
    var labelField: String { namedLabelField ?? "label" }

    /// The part of a plan that is about the task, checked against the model.
    ///
    /// - Parameter labels: of `classify`, where none were named
    func plan(
        for configuration: ModelConfiguration, seed: UInt64 = 0, labels: () throws(Failure) -> [String]
    ) throws(Failure) -> FederationPlan {
        var plan = FederationPlan()
        plan.seed = seed
        plan.task = try choice("--task", task, TaskName.self)
        if plan.task == .causal {
            try require(self.labels == nil, "--labels means nothing without --task classify")
            try require(namedLabelField == nil, "--label-field means nothing without --task classify: leave it out")
        }
        // Before the labels are looked for: a model that is not for the task has none.
        var fitting = plan
        fitting.settleTask(for: configuration)
        try fitting.validateTask(for: configuration)
        if plan.task == .classify {
            if let named = self.labels { plan.labels = try PlanOptions.readLabels(named) } else { plan.labels = try labels() }
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
