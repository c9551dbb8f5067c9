namespace Mustafar.Tests;

/// <summary>Threads that begin together.</summary>
internal static class Threads
{
    /// <summary>Runs actions on threads of their own, and throws what one of them threw.</summary>
    internal static void AtOnce(params Action[] actions)
    {
        using Barrier start = new(actions.Length);
        Task.WaitAll([.. actions.Select(action => Task.Factory.StartNew(
            () =>
            {
                start.SignalAndWait();
                action();
            },
            CancellationToken.None,
            TaskCreationOptions.LongRunning,
            TaskScheduler.Default))]);
    }
}
