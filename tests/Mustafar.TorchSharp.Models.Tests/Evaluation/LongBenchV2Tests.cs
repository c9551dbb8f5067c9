using System.Text.Json;
using System.Text.Json.Nodes;
using Mustafar.Models.Chat;
using Mustafar.Models.Evaluation;

namespace Mustafar.Tests.Evaluation;

[TestFixture]
public sealed class LongBenchV2Tests : TinyLanguageFixture
{
    private readonly TemporaryDirectory _directory = new();

    [OneTimeTearDown]
    public void Remove() => _directory.Dispose();

    [Test]
    public void AnArrayAndLinesAreTheSameQuestions([Values] bool lines, [Values] bool mark)
    {
        JsonObject[] questions = [Question(0, "B", "easy", "short"), Question(1, "D", "hard", "long")];
        string text = lines ? string.Join("\n\n", questions.Select(question => question.ToJsonString())) : new JsonArray(questions).ToJsonString();
        string path = Write((mark && lines ? "" : " ") + text);
        LongBenchV2Task task = new(Language, path);
        Assert.That(task.Samples, Is.EqualTo(2));
        PromptSample sample = task.MakeSample(1);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(sample.Answers, Is.EqualTo(new[] { "D" }));
            Assert.That(sample.Group, Is.EqualTo("hard, long"));
            Assert.That(Language.Tokenizer.Decode(sample.Context), Is.EqualTo("""
                Please read the following text and answer the question below.

                <text>
                context 1
                </text>

                What is the correct answer to this question: question 1?
                Choices:
                (A) a 1
                (B) b 1
                (C) c 1
                (D) d 1

                Format your response as follows: "The correct answer is (insert answer here)".
                """));
        }
    }

    [TestCase("The correct answer is (B).", "B")]
    [TestCase("Well. **The correct answer is (C)** since", "C")]
    [TestCase("The correct answer is D", "D")]
    [TestCase("The correct answer is A. The correct answer is (B)", "B")]
    [TestCase("The correct answer is (E)", null)]
    [TestCase("the correct answer is (A)", null)]
    [TestCase("(A)", null)]
    [TestCase("", null)]
    public void AnAnswerNamesAChoiceAsThePublishedScriptReadsIt(string answer, string? choice) =>
        Assert.That(LongBenchV2Task.ChoiceOf(answer), Is.EqualTo(choice));

    [Test]
    public void ScoresAreThoseOfChoicesByDifficultyAndLength([Values(1, 2)] int batch)
    {
        string path = Write(new JsonArray(Question(0, "A", "easy", "short"), Question(1, "B", "easy", "short"), Question(2, "A", "hard", "long")).ToJsonString());
        LongBenchV2Task task = new(Language, path, ChatTemplate.Load(Checkpoint), maxPromptTokens: 60, samples: 2, batch);
        PromptSample[] samples = [.. Enumerable.Range(0, 2).Select(task.MakeSample)];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(samples.Select(sample => task.Score(sample, "The correct answer is (A)")), Is.EqualTo(new[] { 1.0, 0 }));
            Assert.That(samples[0].Context, Has.Count.LessThan(160), "60 tokens and the chat template");
        }

        JsonNode[] parts = [.. Enumerable.Range(0, task.Parts).Select(part => task.MeasurePart(CacheSetting.Dense, part, new Progress<double>(), default))];
        TaskResult result = task.Summarize(parts);
        Assert.That(parts, Has.Length.EqualTo(2 / batch));
        Assert.That(result.Metrics["score"], Is.Zero, "it says nothing but k");
        Assert.That(result.Details!["groups"]!["easy, short"], Is.Not.Null);
    }

    [TestCase("answer", "\"E\"", "'answer'", "'E'")]
    [TestCase("choice_C", "null", "'choice_C'", "absent")]
    [TestCase("context", "7", "'context'", "7")]
    public void WhatIsNotValidNamesTheQuestionAndTheKey(string key, string value, params string[] words)
    {
        JsonObject wrong = Question(1, "A", "easy", "short");
        wrong[key] = JsonNode.Parse(value);
        string path = Write(new JsonArray(Question(0, "A", "easy", "short"), wrong).ToJsonString());
        string message = Assert.Catch<UnusableFileException>(() => new LongBenchV2Task(Language, path))!.Message;
        foreach (string word in words.Append("question 1").Append(path))
        {
            Assert.That(message, Does.Contain(word));
        }
    }

    [TestCase("[]")]
    [TestCase("")]
    [TestCase("[1]")]
    [TestCase("[{]")]
    [TestCase("{ \"answer\": 1")]
    public void WhatIsNoFileOfQuestionsIsRefused(string text)
    {
        string path = Write(text);
        Assert.That(() => new LongBenchV2Task(Language, path), Throws.InstanceOf<UnusableFileException>().With.Message.Contains(path));
    }

    private static JsonObject Question(int i, string answer, string difficulty, string length) => JsonSerializer.SerializeToNode(new
    {
        _id = $"id {i}", domain = "d", sub_domain = "s", difficulty, length, question = $" question {i}? ", choice_A = $"a {i}", choice_B = $"b {i} ",
        choice_C = $"c {i}", choice_D = $"d {i}", answer, context = $"\ncontext {i}\n",
    })!.AsObject();

    private string Write(string text)
    {
        string path = _directory.File($"{TestContext.CurrentContext.Test.ID}.json");
        File.WriteAllText(path, text);
        return path;
    }
}
