"""The commands of `walsh`, one file each."""
