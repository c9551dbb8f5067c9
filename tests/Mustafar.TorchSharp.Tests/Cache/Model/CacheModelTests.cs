using FsCheck;
using FsCheck.Fluent;
using Microsoft.FSharp.Core;
using NUnit.Framework.Internal;

namespace Mustafar.Tests.Cache.Model;

/// <summary>Whatever is done with a cache and its forks, it is what plain lists of tokens say.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class CacheModelTests(string device)
{
    [Test]
    public void Any_run_is_what_lists_of_tokens_say() => Check(run => run.Check(), balanced: false, integers: false, Runs(25));

    [Test]
    public void So_with_balanced_patterns() => Check(run => run.Check(), balanced: true, integers: false, Runs(10));

    [Test]
    public void So_with_integers([Values] bool balanced)
    {
        Check(run => run.Check(), balanced, integers: true, Runs(15));
    }

    /// <summary>A property that fails names the shortest run: without this the tests above would be hard to use.</summary>
    [Test]
    public void A_run_that_fails_is_made_short()
    {
        static void NoTwoForks(CacheRun run) =>
            Assert.That(run.Operations.Count(operation => operation is CacheOperation.Fork), Is.LessThan(2));

        Exception? failure = Assert.Catch(() => Check(NoTwoForks, balanced: false, integers: false, runs: 100));
        string shrunk = failure!.Message[failure.Message.IndexOf("Shrunk", StringComparison.Ordinal)..];
        Assert.That(shrunk.Split("fork"), Has.Length.EqualTo(3).And.None.Contains("forward").And.None.Contains("append"));
    }

    // A device takes its time for each of the many small calls.
    private int Runs(int onCpu) => device == "cpu" ? onCpu : onCpu / 4;

    private void Check(Action<CacheRun> body, bool balanced, bool integers, int runs)
    {
        // A seed of its own for each property; a failure prints where to start anew.
        Rnd seed = new(balanced ? 2ul : 1ul, 1);
        Config config = Config.QuickThrowOnFailure
            .WithMaxTest(runs)
            .WithQuietOnSuccess(true)
            .WithReplay(new FSharpOption<Replay>(new Replay(seed, FSharpOption<int>.None)));
        Prop.ForAll(CacheRun.Any(device, balanced, integers), Isolated).Check(config);

        // An assertion that fails counts for the whole test, even one that shrinking leaves behind.
        void Isolated(CacheRun run)
        {
            using TestExecutionContext.IsolatedContext context = new();
            body(run);
        }
    }
}
